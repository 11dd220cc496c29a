// usage: node server.js HOST PORT [closes]; with "closes" TERM ends it when the
// last answer is out, without it at once.
const fs = require('fs')
const http = require('http')

const [host, port, manner] = process.argv.slice(2)
const big = fs.readFileSync(process.env.BIG)
const server = http.createServer((request, response) => {
  response.end(request.url === '/big' ? big : 'ok\n')
})
if (manner === 'closes') process.on('SIGTERM', () => server.close())
server.listen(Number(port), host)
