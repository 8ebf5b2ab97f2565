# Start a server: as a replica of the master there is, or, where there is none, the first as master
# and the others as its replicas.
set -eu
here=$(dirname "$0")
SENTINELS=${SENTINELS:-"sentinel-0.sentinel:26379 sentinel-1.sentinel:26379 sentinel-2.sentinel:26379"}
NODES=${NODES:-"redis-0.redis-nodes:6379 redis-1.redis-nodes:6379 redis-2.redis-nodes:6379"}
SELF=${SELF:-"$(hostname).redis-nodes:6379"}
. "$here/master.sh"
found=$(master)
first=${NODES%% *}
[ -n "$found" ] || found="${first%:*} ${first##*:}"
set -- "${CONFIG:-/etc/redis/redis.conf}" --port "${SELF##*:}" \
  --replica-announce-ip "${SELF%:*}" --replica-announce-port "${SELF##*:}" "$@"
# A master that came back before the sentinels chose another has lost everything: it goes on, empty,
# and indexers notice.
[ "$found" = "${SELF%:*} ${SELF##*:}" ] || set -- "$@" --replicaof "$found"
exec redis-server "$@"
