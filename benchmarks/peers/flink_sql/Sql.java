import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedWriter;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDateTime;
import java.time.format.DateTimeFormatter;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;
import org.apache.flink.table.api.TableResult;
import org.apache.flink.table.functions.ScalarFunction;
import org.apache.flink.types.Row;
import org.apache.flink.types.RowKind;
import org.apache.flink.util.CloseableIterator;

/**
 * SQL in Flink: jobs one after the other in one JVM, each timed from its first row to its end.
 *
 * <p>Arguments: for each job a file of statements and a file for the rows of its result, then settings as NAME=VALUE. Statements are divided
 * by lines of {@code ;} alone. The last one is an INSERT, or a SELECT, whose changes are put together into the final result and written as a
 * line of JSON for each row, all values as texts. Statements say {@code WHERE seen()} where they read: the first call starts the clock.
 * Prints seconds and cpu_seconds of the whole process, as a JSON object for each job.
 */
public final class Sql {
    private static final DateTimeFormatter TIMES = DateTimeFormatter.ofPattern("yyyy-MM-dd HH:mm:ss.SSS");
    private static volatile boolean seen;
    private static long began;
    private static long beganCpu;

    static long cpu() {
        return ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
    }

    static synchronized void start() {
        if (!seen) {
            began = System.nanoTime();
            beganCpu = cpu();
            seen = true;
        }
    }

    /** True, for each row. */
    public static final class Seen extends ScalarFunction {
        public boolean eval() {
            if (!seen) {
                start();
            }
            return true;
        }

        @Override
        public boolean isDeterministic() {
            return false; // the planner would call it once, before the job
        }
    }

    /** How often a text has a character. */
    public static final class CountChar extends ScalarFunction {
        public long eval(String text, String character) {
            long count = 0;
            for (int i = 0; text != null && i < text.length(); i++) {
                if (text.charAt(i) == character.charAt(0)) {
                    count++;
                }
            }
            return count;
        }
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> settings = new HashMap<>();
        List<String> files = new ArrayList<>();
        for (String argument : arguments) {
            int equals = argument.indexOf('=');
            if (equals < 0) {
                files.add(argument);
            } else {
                settings.put(argument.substring(0, equals), argument.substring(equals + 1));
            }
        }
        for (int i = 0; i < files.size(); i += 2) {
            run(Files.readString(Path.of(files.get(i))), Path.of(files.get(i + 1)), settings);
        }
        Runtime.getRuntime().halt(0); // threads of clients that nobody waits for
    }

    private static void run(String statements, Path out, Map<String, String> settings) throws Exception {
        TableEnvironment tables =
                TableEnvironment.create(
                        EnvironmentSettings.newInstance().inStreamingMode().withConfiguration(Configuration.fromMap(settings)).build());
        tables.createTemporarySystemFunction("seen", Seen.class);
        tables.createTemporarySystemFunction("count_char", CountChar.class);
        TableResult result = null;
        seen = false;
        for (String statement : statements.split("\n;\n")) {
            result = tables.executeSql(statement);
        }
        if (result == null || result.getJobClient().isEmpty()) {
            throw new IllegalStateException("the last statement starts no job");
        }
        List<String> names = result.getResolvedSchema().getColumnNames();
        Map<Row, Integer> rows = null;
        if (names.size() == 1 && names.get(0).contains(".")) { // of an INSERT: the name of the sink
            result.await();
        } else {
            rows = collected(result);
        }
        long ended = System.nanoTime();
        long endedCpu = cpu();
        if (rows != null) {
            write(rows, names, out);
        }
        System.out.printf("{\"seconds\": %.3f, \"cpu_seconds\": %.3f}%n", (ended - began) / 1e9, (endedCpu - beganCpu) / 1e9);
        System.out.flush();
    }

    private static Map<Row, Integer> collected(TableResult result) throws Exception {
        Map<Row, Integer> rows = new LinkedHashMap<>();
        try (CloseableIterator<Row> changes = result.collect()) {
            while (changes.hasNext()) {
                Row row = changes.next();
                int sign = Set.of(RowKind.INSERT, RowKind.UPDATE_AFTER).contains(row.getKind()) ? 1 : -1;
                row.setKind(RowKind.INSERT);
                rows.merge(row, sign, (one, other) -> one + other == 0 ? null : Integer.valueOf(one + other));
            }
        }
        return rows;
    }

    private static void write(Map<Row, Integer> rows, List<String> names, Path path) throws Exception {
        ObjectMapper json = new ObjectMapper();
        try (BufferedWriter out = Files.newBufferedWriter(path)) {
            for (Map.Entry<Row, Integer> each : rows.entrySet()) {
                Map<String, String> values = new LinkedHashMap<>();
                for (int i = 0; i < names.size(); i++) {
                    Object value = each.getKey().getField(i);
                    if (value instanceof LocalDateTime) {
                        value = TIMES.format((LocalDateTime) value);
                    }
                    values.put(names.get(i), value == null ? null : value.toString());
                }
                String line = json.writeValueAsString(values);
                if (each.getValue() < 0) {
                    throw new IllegalStateException("taken back and never there: " + line);
                }
                for (int i = 0; i < each.getValue(); i++) {
                    out.write(line);
                    out.write('\n');
                }
            }
        }
    }
}
