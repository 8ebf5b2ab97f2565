# Start a sentinel that watches the master there is, or the first server.
set -eu
here=$(dirname "$0")
SENTINELS=${SENTINELS:-"sentinel-0.sentinel:26379 sentinel-1.sentinel:26379 sentinel-2.sentinel:26379"}
NODES=${NODES:-"redis-0.redis-nodes:6379 redis-1.redis-nodes:6379 redis-2.redis-nodes:6379"}
SELF=${SELF:-"$(hostname).sentinel:26379"}
FOLDER=${FOLDER:-/data}
. "$here/master.sh"
found=$(master)
first=${NODES%% *}
[ -n "$found" ] || found="${first%:*} ${first##*:}"
# Names, not addresses: a pod that comes back has another address. A sentinel writes this file anew.
cat > "$FOLDER/sentinel.conf" <<CONF
port ${SELF##*:}
dir $FOLDER
protected-mode no
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip ${SELF%:*}
sentinel announce-port ${SELF##*:}
sentinel monitor mymaster $found 2
sentinel down-after-milliseconds mymaster ${DOWN_AFTER_MS:-5000}
sentinel failover-timeout mymaster ${FAILOVER_MS:-30000}
sentinel parallel-syncs mymaster 2
CONF
exec redis-server "$FOLDER/sentinel.conf" --sentinel "$@"
