# Say who the master is: "host port", or nothing. Asked are the sentinels, then the servers.
# SENTINELS and NODES are lists of host:port.
ask() { timeout 2 redis-cli -h "${1%:*}" -p "${1##*:}" $2 2>/dev/null; }

master() {
  for each in $SENTINELS; do
    set -- $(ask "$each" "sentinel get-master-addr-by-name mymaster")
    # An error is more words than two.
    if [ $# -eq 2 ]; then echo "$1 $2"; return; fi
  done
  for each in $NODES; do
    # A master that has replicas, so that two that start at once do not take each other for it.
    if ask "$each" "info replication" | tr -d '\r' | grep -q '^connected_slaves:[1-9]' &&
      ask "$each" "info replication" | tr -d '\r' | grep -q '^role:master$'; then
      echo "${each%:*} ${each##*:}"; return
    fi
  done
}
