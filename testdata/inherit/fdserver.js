// An HTTP server on an inherited descriptor: fdserver.js FD. Closes on TERM as
// the Node documentation shows it.
const http = require('http');

const server = http.createServer((request, response) => {
  response.setHeader('Moult-Generation', process.env.MOULT_GENERATION || '');
  response.end('node\n');
});
server.listen({ fd: Number(process.argv[2]) });
process.on('SIGTERM', () => server.close());
