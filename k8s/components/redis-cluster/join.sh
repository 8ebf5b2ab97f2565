# Make the servers a cluster, unless they are one. NODES is a list of host:port.
set -eu
NODES=${NODES:-"redis-0.redis-nodes:6379 redis-1.redis-nodes:6379 redis-2.redis-nodes:6379 redis-3.redis-nodes:6379 redis-4.redis-nodes:6379 redis-5.redis-nodes:6379"}
first=${NODES%% *}
if redis-cli -h "${first%:*}" -p "${first##*:}" cluster info | grep -q '^cluster_slots_assigned:16384'; then
  echo "is a cluster"
  exit 0
fi
# Servers meet by addresses only; a name that is not there yet ends the Job's pod, and the next tries.
addresses=
for each in $NODES; do
  found=$(getent hosts "${each%:*}")
  addresses="$addresses ${found%% *}:${each##*:}"
done
redis-cli --cluster create $addresses --cluster-replicas 1 --cluster-yes
