#!/bin/sh
# Restarts engines one by one, by their ports: rolling-update.sh 8324 8325
#
# Each finishes what it has begun, and the next one waits until it answers again. RESTART is the command that restarts
# the engine on a port, `systemctl restart llamacord-engine@8324` by default; it may return before the engine is ready.
set -eu
: "${RESTART:=systemctl restart llamacord-engine@}"
: "${PATIENCE_S:=900}"

health() {
    curl --silent --output /dev/null --max-time 5 --write-out '%{http_code}' "http://127.0.0.1:$1/health" || true
}

[ $# -gt 0 ] || { echo "Usage: $0 PORT..." >&2; exit 2; }
for port in "$@"; do
    [ "$(health "$port")" = 200 ] || { echo "The engine at port $port is not ready: nothing more is restarted." >&2; exit 1; }
done
for port in "$@"; do
    echo "Port $port: restarting"
    $RESTART"$port"
    waited=0
    until [ "$(health "$port")" = 200 ]; do
        [ "$waited" -lt "$PATIENCE_S" ] || { echo "Port $port does not answer after $PATIENCE_S s: stopped here." >&2; exit 1; }
        sleep 1
        waited=$((waited + 1))
    done
    sleep 3 # until the balancer has noticed, or for a moment there would be none
    echo "Port $port: ready"
done
