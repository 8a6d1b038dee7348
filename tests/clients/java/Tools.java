import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.lang.reflect.InvocationTargetException;
import java.util.Arrays;
import org.apache.kafka.common.utils.Exit;

/**
 * Runs Kafka's console tools one after the other without starting Java for each: a line of standard input is a
 * class, its arguments, and maybe "&lt; FILE". Says "ended STATUS" after each.
 */
public final class Tools {
    private static final class Ended extends RuntimeException {
        private static final long serialVersionUID = 1;
    }

    /** How a tool ended. Some catch what is thrown at their end, and end once more. */
    private static Integer status;

    public static void main(String[] none) throws Exception {
        Exit.setExitProcedure(Tools::end);
        Exit.setHaltProcedure(Tools::end);
        InputStream input = System.in;
        try (var lines = new BufferedReader(new InputStreamReader(input))) {
            String line;
            while ((line = lines.readLine()) != null) {
                int status = run(line.split(" "));
                System.out.flush();
                System.out.println("ended " + status);
            }
        }
    }

    private static void end(int with, String message) {
        if (status == null) {
            status = with;
        }
        throw new Ended();
    }

    private static int run(String[] words) throws Exception {
        int end = words.length;
        if (end > 2 && words[end - 2].equals("<")) {
            System.setIn(new FileInputStream(words[end - 1]));
            end -= 2;
        }
        status = null;
        try {
            Class.forName(words[0]).getMethod("main", String[].class)
                .invoke(null, (Object) Arrays.copyOfRange(words, 1, end));
        } catch (InvocationTargetException wrapped) {
            if (!(wrapped.getCause() instanceof Ended)) {
                wrapped.getCause().printStackTrace();
                return 1;
            }
        }
        return status == null ? 0 : status;
    }
}
