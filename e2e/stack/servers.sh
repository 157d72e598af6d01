# shellcheck shell=bash
# A real Apache Kafka broker (KRaft) and a real PostgreSQL with TimescaleDB, as plain
# processes of this machine. Pods reach them at $HOST_IP, tests at 127.0.0.1.
#
# Each can be killed with -9 and started again on the same data.

KAFKA_LIBS=$CORRENTE_CACHE/kafka
ROOTFS=$CORRENTE_CACHE/postgres
PGBIN=/usr/lib/postgresql/17/bin
PGDATA=/var/lib/postgresql/corrente # inside $ROOTFS

# --- Kafka ------------------------------------------------------------------------

# The star is for the JVM to expand, not for the shell.
JAVA=(java "-Dlog4j2.configurationFile=$E2E/stack/kafka/log4j2.properties" -cp "$KAFKA_LIBS/*")

# Authorities of our own and what they sign. $DIR/secrets is as a pod has it below /etc/corrente; $DIR/tls/stranger
# has a client certificate of an authority that the broker does not know, and that authority.
make_certificates() {
  local secrets=$DIR/secrets/kafka tls=$DIR/tls
  mkdir -p "$secrets"/{ca,client,sasl} "$tls/stranger"
  authority "$secrets/ca/ca.crt" "$tls/ca.key" corrente-e2e
  authority "$tls/stranger/ca.crt" "$tls/stranger/ca.key" stranger
  signed "$tls/broker" broker "$secrets/ca/ca.crt" "$tls/ca.key" "IP:$HOST_IP,IP:127.0.0.1,DNS:localhost"
  cat "$tls/broker.key" "$tls/broker.crt" >"$tls/broker.pem"
  signed "$secrets/client/tls" corrente "$secrets/ca/ca.crt" "$tls/ca.key"
  signed "$tls/stranger/tls" corrente "$tls/stranger/ca.crt" "$tls/stranger/ca.key"
  printf corrente >"$secrets/sasl/username"
  printf corrente-password >"$secrets/sasl/password"
}

authority() { # authority CERTIFICATE KEY NAME
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$3" -keyout "$2" -out "$1" 2>/dev/null
}

signed() { # signed PATH NAME AUTHORITY ITS-KEY [ADDRESSES]: writes PATH.crt and PATH.key
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$2" -CA "$3" -CAkey "$4" \
    -addext basicConstraints=critical,CA:FALSE ${5:+-addext "subjectAltName=$5"} -keyout "$1.key" -out "$1.crt" 2>/dev/null
}

make_kafka() {
  make_certificates
  sed -e "s#@DATA@#$DIR#; s#@HOST@#$HOST_IP#g" "$E2E/stack/kafka/server.properties" >"$DIR/kafka.properties"
  # Any 16 bytes in base64 name a cluster.
  "${JAVA[@]}" -Xmx128m kafka.tools.StorageTool format -t Y29ycmVudGUtZTJlLTAwMQ -c "$DIR/kafka.properties" \
    --add-scram 'SCRAM-SHA-512=[name=corrente,password=corrente-password]' --add-scram 'SCRAM-SHA-512=[name=guest,password=guest]' >"$LOG/kafka-format.log" 2>&1 ||
    fail "failed to format Kafka's storage; see $LOG/kafka-format.log"
}

start_kafka() { start kafka "${JAVA[@]}" -Xmx512m kafka.Kafka "$DIR/kafka.properties"; }

port_open() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

wait_for_kafka() {
  wait_for 90 "Kafka ($LOG/kafka.log)" port_open "$HOST_IP" 9092
  wait_for 10 "Kafka's port for the tests ($LOG/kafka.log)" port_open 127.0.0.1 9094
}

# --- PostgreSQL -------------------------------------------------------------------

in_postgres() { chroot --userspec=postgres:postgres "$ROOTFS" /usr/bin/env -i PATH=/usr/bin:/bin LANG=C.UTF-8 "$@"; }

psql() { in_postgres "$PGBIN/psql" -X -h /tmp -U postgres "$@"; }

make_postgres() {
  rm -rf "${ROOTFS:?}$PGDATA" "$ROOTFS"/dev/shm/*
  chmod 1777 "$ROOTFS/dev/shm" # POSIX shared memory is files there, which are cleared; SysV's would outlive a killed run
  in_postgres "$PGBIN/initdb" -D "$PGDATA" -U postgres --auth-local=trust --auth-host=scram-sha-256 --no-instructions \
    >"$LOG/initdb.log" 2>&1 || fail "failed to make the database's folder; see $LOG/initdb.log"
  printf 'host all all %s scram-sha-256\n' 10.0.0.0/8 172.16.0.0/12 >>"$ROOTFS$PGDATA/pg_hba.conf" # pods, by their node's address
  cat >>"$ROOTFS$PGDATA/postgresql.conf" <<END
listen_addresses = '127.0.0.1,$HOST_IP'
unix_socket_directories = '/tmp'
max_connections = 200
shared_preload_libraries = 'timescaledb'
timescaledb.telemetry_level = off
shared_buffers = 256MB
max_wal_size = 4GB
END
}

start_postgres() {
  # It is not running (the caller knows), but its id may still be a zombie's, where the
  # machine's first process is slow to look after orphans: PostgreSQL would hold back.
  rm -f "$ROOTFS$PGDATA/postmaster.pid" "$ROOTFS"/tmp/.s.PGSQL.5432*
  start postgres chroot --userspec=postgres:postgres "$ROOTFS" "$PGBIN/postgres" -D "$PGDATA"
}

wait_for_postgres() { wait_for 90 "PostgreSQL ($LOG/postgres.log)" in_postgres "$PGBIN/pg_isready" -q -h /tmp; }

# The owner of the databases is no superuser, as a plant's would not be. It may make
# databases (a test has its own), and end the sessions of others (a test of faults does).
make_database() {
  psql -q -d template1 -c "CREATE EXTENSION timescaledb" 2>>"$LOG/initdb.log"
  psql -q -c "CREATE ROLE corrente LOGIN CREATEDB PASSWORD 'corrente' IN ROLE pg_signal_backend, pg_monitor" \
    -c "CREATE DATABASE corrente OWNER corrente"
}

# --- both -------------------------------------------------------------------------

server() { # server NAME kill|start
  case $1:$2 in
  kafka:kill | postgres:kill) kill_process "$1" ;;
  kafka:start | postgres:start)
    running "$1" >/dev/null && return
    "start_$1"
    "wait_for_$1"
    ;;
  *) fail "unknown: $1 $2; usage: stack.sh kafka|postgres kill|start" ;;
  esac
}

server_addresses() { # as KEY=VALUE: for the tests on this machine, for pods, and what the tests run
  cat <<END
CORRENTE_TEST_KAFKA=127.0.0.1:9094
CORRENTE_TEST_KAFKA_TLS=$HOST_IP:9095
CORRENTE_TEST_KAFKA_SASL=$HOST_IP:9096
CORRENTE_TEST_SECRETS=$DIR/secrets
CORRENTE_TEST_STRANGER=$DIR/tls/stranger
CORRENTE_TEST_POSTGRES=postgres://corrente:corrente@127.0.0.1:5432/corrente
CORRENTE_POD_KAFKA=$HOST_IP:9092
CORRENTE_POD_POSTGRES=postgres://corrente:corrente@$HOST_IP:5432/corrente
CORRENTE_HOST=$HOST_IP
CORRENTE_LOGS=$LOG
CORRENTE_PYTHON=$CORRENTE_CACHE/python/bin/python
CORRENTE_REGISTRY=$CORRENTE_CACHE/bin/schema-registry
CORRENTE_CONNECT=$CORRENTE_CACHE/connect
END
}
