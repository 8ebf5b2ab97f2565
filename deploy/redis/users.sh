#!/bin/sh
# Put the SHA-256 of three passwords into an ACL file, which then holds no password.
# Usage: users.sh users-7.0.acl INDEXER-FILE ROUTER-READ-FILE ROUTER-WRITE-FILE > users.acl
set -eu
[ $# -eq 4 ] || { sed -n 's/^# Usage: /usage: /p' "$0" >&2; exit 64; }
hash() {
  password=$(cat "$1")
  [ -n "$password" ] || { echo "$1 is empty" >&2; exit 65; }
  printf %s "$password" | sha256sum | cut -d ' ' -f 1
}
indexer=$(hash "$2") read=$(hash "$3") write=$(hash "$4")
sed -e "s/#INDEXER /#$indexer /" -e "s/#ROUTER-READ /#$read /" -e "s/#ROUTER-WRITE /#$write /" "$1"
