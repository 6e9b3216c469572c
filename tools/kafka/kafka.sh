#!/usr/bin/env bash
# A single-node Apache Kafka broker (KRaft, broker and controller in one JVM) on 127.0.0.1, without Docker.
#
#   kafka.sh start|stop|status|libs [--port 19092] [--controller-port PORT+1] [--dir .kafka]
#
# Needs Java 17 and Maven. The jars come from Maven Central into .kafka/libs of the repository, once; --dir holds the
# data, the configuration, the log and the pid file of one broker. Stopping and starting on the same --dir keeps the data.
# Lines of DIR/more.properties are settings of the broker beside those that are here, or in their place.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
libs="$root/.kafka/libs"
port=19092
controller_port=
dir="$root/.kafka"

die() {
    echo "kafka.sh: $*" >&2
    exit 1
}

[ $# -ge 1 ] || die "usage: kafka.sh start|stop|status|libs [--port N] [--controller-port N] [--dir DIR]"
verb=$1
shift
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || die "$1 needs a value"
    case $1 in
        --port) port=$2 ;;
        --controller-port) controller_port=$2 ;;
        --dir) dir=$2 ;;
        *) die "unknown option $1" ;;
    esac
    shift 2
done
controller_port=${controller_port:-$((port + 1))}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
config="$dir/server.properties"
log="$dir/server.log"
pid_file="$dir/pid"
archive= # where the broker writes its classes when it ends

fetch_libs() {
    cmp -s "$here/pom.xml" "$libs/pom.xml" && return
    command -v mvn > /dev/null || die "Maven is missing: apt-get install maven"
    mkdir -p "$root/.kafka"
    local fresh
    fresh=$(mktemp -d "$root/.kafka/libs.XXXXXX")
    if ! mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$fresh" \
        -DincludeScope=runtime > "$fresh/mvn.log" 2>&1; then
        cat "$fresh/mvn.log" >&2
        rm -rf "$fresh"
        die "Maven could not fetch the Kafka jars"
    fi
    cp "$here/pom.xml" "$fresh/pom.xml" # the mark of a complete folder
    rm -rf "$libs"
    mv -T "$fresh" "$libs" 2> /dev/null || { rm -rf "$fresh" && return; } # another run was first
    archive_classes
}

# A broker starts and ends once, for an archive of its classes that the JVM of every later one maps instead of reading and verifying them:
# half of what a start computes. It is left out where this fails; the JVM reads the classes where the archive is not of its version.
archive_classes() {
    (
        dir="$root/.kafka/classes"
        mkdir -p "$dir"
        config="$dir/server.properties" log="$dir/server.log" pid_file="$dir/pid"
        archive="$dir/classes.jsa"
        start && stop && mv "$archive" "$libs/classes.jsa"
    ) > /dev/null || echo "kafka.sh: no archive of classes, see $root/.kafka/classes/server.log" >&2
    [ ! -e "$libs/classes.jsa" ] || rm -rf "$root/.kafka/classes"
}

running() {
    [ -s "$pid_file" ] && ps -ww -o args= -p "$(cat "$pid_file")" 2> /dev/null | grep -qF "$config"
}

answers() {
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null
}

# A short broker session: a restarted broker waits for the session of its former self to run out. An idle one writes no record of its
# metadata each half second.
# Retention goes by the timestamps of the records: without log.retention.ms=-1 replayed history would vanish while it is read.
configure() {
    cat > "$config" << EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller_port
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller_port
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$dir/data
auto.create.topics.enable=false
message.max.bytes=16777216
replica.fetch.max.bytes=16777216
log.retention.ms=-1
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
controlled.shutdown.enable=false
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
metadata.max.idle.interval.ms=5000
EOF
    [ ! -f "$dir/more.properties" ] || cat "$dir/more.properties" >> "$config"
    cat > "$dir/log4j2.properties" << 'EOF'
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=WARN
rootLogger.appenderRef.out.ref=out
logger.server.name=kafka.server
logger.server.level=INFO
EOF
}

start() {
    if running; then
        echo "kafka.sh: already running on 127.0.0.1:$port (pid $(cat "$pid_file"))"
        return
    fi
    command -v java > /dev/null || die "Java 17 is missing: apt-get install openjdk-17-jre-headless"
    answers && die "port $port is in use"
    fetch_libs
    configure
    rm -rf "$dir/tmp" # of a run that was killed: a JVM that ends by itself leaves nothing in it
    mkdir "$dir/tmp"
    # shellcheck disable=SC2206 - more flags of the JVM, split at blanks
    local java=(java -Xms128m -Xmx512m -XX:+ExitOnOutOfMemoryError -Djava.net.preferIPv4Stack=true
        -XX:-UsePerfData "-Djava.io.tmpdir=$dir/tmp" ${SABOT_KAFKA_JVM:-}
        "-Dlog4j2.configurationFile=$dir/log4j2.properties" -cp "$libs/*")
    [ ! -f "$libs/classes.jsa" ] || java+=("-XX:SharedArchiveFile=$libs/classes.jsa" -Xlog:cds=off -Xlog:cds+dynamic=off)
    if [ ! -f "$dir/data/meta.properties" ]; then
        "${java[@]}" kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qg -c "$config" > "$dir/format.log" 2>&1 ||
            die "the data folder could not be formatted, see $dir/format.log"
    fi
    # its own session and no inherited terminal: Ctrl-C of the caller does not reach it
    setsid "${java[@]}" ${archive:+"-XX:ArchiveClassesAtExit=$archive"} kafka.Kafka "$config" > "$log" 2>&1 < /dev/null &
    echo $! > "$pid_file"
    for _ in $(seq 600); do
        sleep 0.2 # at first it is still this script's fork, which `running` does not know
        running || die "the broker ended while starting, see $log"
        if answers && grep -q "Kafka Server started" "$log"; then
            echo "kafka.sh: running on 127.0.0.1:$port (pid $(cat "$pid_file"))"
            return
        fi
    done
    die "the broker does not answer after 120 s, see $log"
}

stop() {
    if running; then
        local pid
        pid=$(cat "$pid_file")
        kill "$pid"
        for _ in $(seq 600); do # one that is killed looks through its logs when it starts, and cuts them
            running || break
            sleep 0.1
        done
        running && kill -9 "$pid"
    fi
    rm -f "$pid_file"
    echo "kafka.sh: stopped"
}

case $verb in
    start) start ;;
    stop) stop ;;
    libs) fetch_libs ;;
    status)
        if running && answers; then
            echo "kafka.sh: running on 127.0.0.1:$port (pid $(cat "$pid_file"))"
        else
            echo "kafka.sh: not running"
            exit 1
        fi
        ;;
    *) die "unknown verb $verb" ;;
esac
