// One request by java.net.http: java Ask.java METHOD URL IN_PIECES BODY_FILE [NAME VALUE]...
// Answers with the status, the body in base64, and a line for each header.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;

public class Ask {
    public static void main(String[] args) throws Exception {
        var body = Files.readAllBytes(Path.of(args[3]));
        var whole = BodyPublishers.ofByteArray(body);
        var sent = args[2].equals("true") ? BodyPublishers.fromPublisher(whole) : whole;
        var request = HttpRequest.newBuilder(URI.create(args[1]));
        request.method(args[0], body.length == 0 ? BodyPublishers.noBody() : sent);
        for (int i = 4; i + 1 < args.length; i += 2) request.header(args[i], args[i + 1]);
        var answer = HttpClient.newHttpClient().send(request.build(), BodyHandlers.ofByteArray());
        var out = new StringBuilder(answer.statusCode() + "\n" + Base64.getEncoder().encodeToString(answer.body()) + "\n");
        answer.headers().map().forEach((name, values) -> out.append(name + ": " + String.join(", ", values) + "\n"));
        System.out.print(out);
    }
}
