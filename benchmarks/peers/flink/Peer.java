import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.ByteOrder;
import java.nio.LongBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicLongArray;
import java.util.stream.Collectors;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.functions.KeySelector;
import org.apache.flink.cep.CEP;
import org.apache.flink.cep.functions.PatternProcessFunction;
import org.apache.flink.cep.nfa.aftermatch.AfterMatchSkipStrategy;
import org.apache.flink.cep.pattern.Pattern;
import org.apache.flink.cep.pattern.conditions.SimpleCondition;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.streaming.api.functions.sink.RichSinkFunction;
import org.apache.flink.streaming.api.functions.source.RichParallelSourceFunction;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.api.Schema;
import org.apache.flink.table.api.TableDescriptor;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.table.connector.ChangelogMode;
import org.apache.flink.table.connector.sink.DynamicTableSink;
import org.apache.flink.table.connector.sink.SinkFunctionProvider;
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.factories.DynamicTableSinkFactory;
import org.apache.flink.table.runtime.typeutils.InternalTypeInfo;
import org.apache.flink.table.types.logical.RowType;
import org.apache.flink.util.Collector;

/**
 * The programs of benchmarks/pipelines in Flink, in one JVM.
 *
 * <p>Arguments: program, parallelism, runs, number (ms), then files. A file is rows of {@code WIDTH} longs, of which the second is the
 * event time. Of all runs of the job the fastest is printed, as one JSON object: seconds and cpu_seconds of the whole process from
 * the first row read to the last one in the sink, and how many rows there were in the end with the sums of what they hold.
 */
public final class Peer {
    static final int WIDTH = 3;
    static final int BLOCK = 1024; // rows; parallel sources take turns, and a watermark follows each
    static final long LATENESS_MS = 5_000;

    /** Of the run that is going on. */
    static final AtomicLong BEGAN = new AtomicLong();

    static final AtomicLong BEGAN_CPU = new AtomicLong();
    static final AtomicLong ENDED = new AtomicLong();
    static final AtomicLong ENDED_CPU = new AtomicLong();
    static final AtomicLongArray SUMS = new AtomicLongArray(4);

    static long cpu() {
        return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
    }

    /** Rows of a file, a share of its blocks each subtask; objects of the engine's own, so that nothing is converted. */
    static final class Rows extends RichParallelSourceFunction<RowData> {
        private final String path;
        private volatile boolean running = true;

        Rows(String path) {
            this.path = path;
        }

        @Override
        public void run(SourceContext<RowData> out) throws IOException {
            LongBuffer longs;
            try (FileChannel file = FileChannel.open(Path.of(path))) {
                longs = file.map(FileChannel.MapMode.READ_ONLY, 0, file.size()).order(ByteOrder.LITTLE_ENDIAN).asLongBuffer();
            }
            if (BEGAN.compareAndSet(0, System.nanoTime())) {
                BEGAN_CPU.set(cpu());
            }
            int rows = longs.remaining() / WIDTH;
            int subtasks = getRuntimeContext().getTaskInfo().getNumberOfParallelSubtasks();
            int block = getRuntimeContext().getTaskInfo().getIndexOfThisSubtask();
            long latest = Long.MIN_VALUE;
            for (int start = block * BLOCK; start < rows && running; start += subtasks * BLOCK) {
                synchronized (out.getCheckpointLock()) {
                    int end = Math.min(start + BLOCK, rows);
                    for (int row = start; row < end; row++) {
                        GenericRowData data = new GenericRowData(WIDTH);
                        for (int i = 0; i < WIDTH; i++) {
                            data.setField(i, longs.get(row * WIDTH + i));
                        }
                        long time = longs.get(row * WIDTH + 1);
                        latest = Math.max(latest, time);
                        out.collectWithTimestamp(data, time);
                    }
                    out.emitWatermark(new Watermark(latest - LATENESS_MS - 1));
                }
            }
        }

        @Override
        public void cancel() {
            running = false;
        }
    }

    /** Adds up the first two columns and their product, behind the number of rows; what is taken back is taken off. */
    static final class Totals extends RichSinkFunction<RowData> {
        private transient long[] sums;

        @Override
        public void open(Configuration configuration) {
            sums = new long[4];
        }

        @Override
        public void invoke(RowData row, Context context) {
            byte kind = row.getRowKind().toByteValue();
            long sign = kind == 0 || kind == 2 ? 1 : -1;
            long x = row.isNullAt(0) ? 0 : row.getLong(0);
            long y = row.isNullAt(1) ? 0 : row.getLong(1);
            sums[0] += sign;
            sums[1] += sign * x;
            sums[2] += sign * y;
            sums[3] += sign * x * y;
        }

        @Override
        public void close() {
            for (int i = 0; i < 4 && sums != null; i++) {
                SUMS.addAndGet(i, sums[i]);
            }
            ENDED.accumulateAndGet(System.nanoTime(), Math::max);
            ENDED_CPU.accumulateAndGet(cpu(), Math::max);
        }
    }

    /** Makes `Totals` a table to insert into. flink_peer.py names it among the services. */
    public static final class Factory implements DynamicTableSinkFactory {
        @Override
        public DynamicTableSink createDynamicTableSink(Context context) {
            return new TotalsTable();
        }

        @Override
        public String factoryIdentifier() {
            return "totals";
        }

        @Override
        public Set<ConfigOption<?>> requiredOptions() {
            return Set.of();
        }

        @Override
        public Set<ConfigOption<?>> optionalOptions() {
            return Set.of();
        }
    }

    static final class TotalsTable implements DynamicTableSink {
        @Override
        public ChangelogMode getChangelogMode(ChangelogMode requested) {
            return requested; // whatever comes, as it comes
        }

        @Override
        public SinkRuntimeProvider getSinkRuntimeProvider(Context context) {
            return SinkFunctionProvider.of(new Totals());
        }

        @Override
        public DynamicTableSink copy() {
            return new TotalsTable();
        }

        @Override
        public String asSummaryString() {
            return "totals";
        }
    }

    static RowType rowType() {
        return (RowType)
                DataTypes.ROW(
                                DataTypes.FIELD("k", DataTypes.BIGINT().notNull()),
                                DataTypes.FIELD("ts", DataTypes.BIGINT().notNull()),
                                DataTypes.FIELD("v", DataTypes.BIGINT().notNull()))
                        .notNull()
                        .getLogicalType();
    }

    static DataStream<RowData> read(StreamExecutionEnvironment env, String path) {
        return env.addSource(new Rows(path), "rows", InternalTypeInfo.of(rowType()));
    }

    static void table(StreamExecutionEnvironment env, StreamTableEnvironment sql, String name, String path, boolean timed, boolean keyed) {
        Schema.Builder schema = Schema.newBuilder().column("k", "BIGINT NOT NULL").column("ts", "BIGINT NOT NULL").column("v", "BIGINT NOT NULL");
        if (timed) {
            schema.columnByMetadata("rt", DataTypes.TIMESTAMP_LTZ(3), "rowtime").watermark("rt", "SOURCE_WATERMARK()");
        }
        if (keyed) {
            schema.primaryKey("k");
        }
        sql.createTemporaryView(name, sql.fromDataStream(read(env, path), schema.build()));
    }

    /** The queries over tables; each gives two columns. */
    static String query(String program, long number) {
        long seconds = number / 1000;
        String span =
                String.format(
                        "INTERVAL '%d %02d:%02d:%02d.%03d' DAY TO SECOND(3)",
                        seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60, number % 1000);
        switch (program) {
            case "interval":
                return "SELECT l.v, r.v FROM l JOIN r ON l.k = r.k AND r.rt BETWEEN l.rt - " + span + " AND l.rt + " + span;
            case "asof":
                return "SELECT l.v, r.v FROM l LEFT JOIN r FOR SYSTEM_TIME AS OF l.rt ON l.k = r.k";
            case "regular":
                return "SELECT l.v, r.v FROM l JOIN r ON l.k = r.k";
            case "left":
                return "SELECT l.v, r.v FROM l LEFT JOIN r ON l.k = r.k";
            case "top_n": // of each key the greatest values
                return "SELECT k, v FROM (SELECT k, v, ROW_NUMBER() OVER (PARTITION BY k ORDER BY v DESC) AS place FROM l) WHERE place <= "
                        + number;
            case "top_n_updates": // of each key the values that are there most often
                return "SELECT k, n FROM (SELECT k, v, n, ROW_NUMBER() OVER (PARTITION BY k ORDER BY n DESC) AS place FROM"
                        + " (SELECT k, v, COUNT(*) AS n FROM l GROUP BY k, v)) WHERE place <= "
                        + number;
            default:
                throw new IllegalArgumentException(program);
        }
    }

    static void runQuery(StreamExecutionEnvironment env, String program, long number, List<String> files) throws Exception {
        StreamTableEnvironment sql = StreamTableEnvironment.create(env);
        boolean timed = program.equals("interval") || program.equals("asof");
        for (int i = 0; i < files.size(); i++) {
            table(env, sql, i == 0 ? "l" : "r", files.get(i), timed, i == 1 && program.equals("asof"));
        }
        if (program.equals("top_n_updates")) {
            sql.getConfig().set("table.exec.mini-batch.enabled", "true");
            sql.getConfig().set("table.exec.mini-batch.allow-latency", "1 s");
            sql.getConfig().set("table.exec.mini-batch.size", "20000");
        }
        Schema two = Schema.newBuilder().column("one", "BIGINT").column("two", "BIGINT").build();
        sql.createTemporaryTable("totals", TableDescriptor.forConnector("totals").schema(two).build());
        sql.executeSql("INSERT INTO totals " + query(program, number)).await();
    }

    static final class Key implements KeySelector<RowData, Long> {
        @Override
        public Long getKey(RowData row) {
            return row.getLong(0);
        }
    }

    static GenericRowData pair(long one, long two) {
        return GenericRowData.of(one, two);
    }

    static InternalTypeInfo<RowData> pairType() {
        return InternalTypeInfo.of(
                (RowType)
                        DataTypes.ROW(DataTypes.FIELD("one", DataTypes.BIGINT()), DataTypes.FIELD("two", DataTypes.BIGINT()))
                                .notNull()
                                .getLogicalType());
    }

    /** A row sets a timer so many ms later; it gives the key and the time since START_MS. */
    static final class SetTimers extends KeyedProcessFunction<Long, RowData, RowData> {
        private final long delay;

        SetTimers(long delay) {
            this.delay = delay;
        }

        @Override
        public void processElement(RowData row, Context context, Collector<RowData> out) {
            context.timerService().registerEventTimeTimer(row.getLong(1) + delay);
        }

        @Override
        public void onTimer(long at, OnTimerContext context, Collector<RowData> out) {
            out.collect(pair(context.getCurrentKey(), at & 0xffff));
        }
    }

    static SimpleCondition<RowData> kind(long kind) {
        return new SimpleCondition<RowData>() {
            @Override
            public boolean filter(RowData row) {
                return row.getLong(2) == kind;
            }
        };
    }

    /** Three kinds of rows of a key, one after the other, other rows between them; gives the key and the last one's time. */
    static final class Steps extends PatternProcessFunction<RowData, RowData> {
        @Override
        public void processMatch(Map<String, List<RowData>> match, Context context, Collector<RowData> out) {
            out.collect(pair(match.get("a").get(0).getLong(0), match.get("c").get(0).getLong(1) & 0xffff));
        }
    }

    static void runStream(StreamExecutionEnvironment env, String program, long number, String file) throws Exception {
        DataStream<RowData> rows = read(env, file);
        if (program.equals("timers")) {
            rows.keyBy(new Key(), Types.LONG).process(new SetTimers(number), pairType()).addSink(new Totals());
        } else {
            Pattern<RowData, ?> steps =
                    Pattern.<RowData>begin("a", AfterMatchSkipStrategy.skipPastLastEvent())
                            .where(kind(0))
                            .followedBy("b")
                            .where(kind(1))
                            .followedBy("c")
                            .where(kind(2))
                            .within(Duration.ofMillis(number));
            CEP.pattern(rows.keyBy(new Key(), Types.LONG), steps).inEventTime().process(new Steps(), pairType()).addSink(new Totals());
        }
        env.execute(program);
    }

    public static void main(String[] arguments) throws Exception {
        String program = arguments[0];
        int parallelism = Integer.parseInt(arguments[1]);
        int runs = Integer.parseInt(arguments[2]);
        long number = Long.parseLong(arguments[3]);
        List<String> files = Arrays.asList(arguments).subList(4, arguments.length);
        String best = "";
        double least = Double.MAX_VALUE;
        for (int run = 0; run < runs; run++) {
            List.of(BEGAN, BEGAN_CPU, ENDED, ENDED_CPU).forEach(each -> each.set(0));
            for (int i = 0; i < 4; i++) {
                SUMS.set(i, 0);
            }
            StreamExecutionEnvironment env = StreamExecutionEnvironment.createLocalEnvironment(parallelism);
            env.getConfig().enableObjectReuse();
            env.getConfig().setAutoWatermarkInterval(0);
            env.setMaxParallelism(1024);
            if (program.equals("timers") || program.equals("pattern")) {
                runStream(env, program, number, files.get(0));
            } else {
                runQuery(env, program, number, files);
            }
            double seconds = (ENDED.get() - BEGAN.get()) / 1e9;
            if (seconds < least) {
                least = seconds;
                List<String> sums = new ArrayList<>();
                for (int i = 0; i < 4; i++) {
                    sums.add(Long.toString(SUMS.get(i)));
                }
                double cpu = (ENDED_CPU.get() - BEGAN_CPU.get()) / 1e9;
                best =
                        String.format(
                                "{\"seconds\": %.4f, \"cpu_seconds\": %.4f, \"sums\": [%s]}",
                                seconds, cpu, sums.stream().collect(Collectors.joining(", ")));
            }
        }
        System.out.println(best);
        System.out.flush();
        System.exit(0);
    }
}
