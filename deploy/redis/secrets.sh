#!/bin/sh
# Print two Secrets with three new passwords of Redis' users: redis-users is Redis' own (an ACL file
# of hashes), redis-logins is the services'. To begin with, and to change all three at once:
#   deploy/redis/secrets.sh | kubectl -n kvatlas apply -f -
set -eu
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 077
for user in indexer router-read router-write; do
  head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$work/$user"
done
"$here/users.sh" "$here/users-7.0.acl" "$work/indexer" "$work/router-read" "$work/router-write" > "$work/users.acl"
cat <<YAML
apiVersion: v1
kind: Secret
metadata:
  name: redis-users
stringData:
  users.acl: |
$(sed 's/^/    /' "$work/users.acl")
---
apiVersion: v1
kind: Secret
metadata:
  name: redis-logins
stringData:
  indexer: $(cat "$work/indexer")
  router-read: $(cat "$work/router-read")
  router-write: $(cat "$work/router-write")
YAML
