import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executors;

/** Usage: java Server HOST PORT [hook]; with "hook" TERM waits for the answers under way. */
public class Server {
    private static final byte[] SMALL = {'o', 'k', '\n'};

    public static void main(String[] args) throws IOException {
        byte[] big = Files.readAllBytes(Path.of(System.getenv("BIG")));
        HttpServer server = HttpServer.create(new InetSocketAddress(args[0], Integer.parseInt(args[1])), 0);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/", exchange -> answer(exchange, SMALL));
        server.createContext("/big", exchange -> answer(exchange, big));
        if (args.length > 2 && args[2].equals("hook")) {
            Runtime.getRuntime().addShutdownHook(new Thread(() -> server.stop(1)));
        }
        server.start();
    }

    private static void answer(HttpExchange exchange, byte[] body) throws IOException {
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }
}
