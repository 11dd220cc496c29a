BIG = File.binread(ENV.fetch("BIG"))

run lambda { |env|
  body = env["PATH_INFO"] == "/big" ? BIG : "ok\n"
  [200, { "Content-Length" => body.bytesize.to_s }, [body]]
}
