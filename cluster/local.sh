#!/usr/bin/env bash
# A one-node Ray head of your own: own ports, token on, stopped by its own pid only (`ray stop` would stop every Ray of the machine).
#   cluster/local.sh start     about 5 s; prints the lines to paste into the shell that submits jobs
#   cluster/local.sh status    says whether it runs (exit code 0) or not (3)
#   cluster/local.sh stop      ends this head and waits until its processes are gone
# Environment: PFSCALE_CLUSTER_DIR (state; default cluster/.local), PFSCALE_GCS_PORT and PFSCALE_DASHBOARD_PORT (default: free ones),
#   PFSCALE_NUM_CPUS (default: all).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
state="${PFSCALE_CLUSTER_DIR:-$here/.local}"
pid_file="$state/pid"
token_file="$state/token"
start_timeout_s=90
stop_timeout_s=60

usage() { sed -n '2,7p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; }

fail() {
  echo "local.sh: $1" >&2
  exit "${2:-1}"
}

# Every process of this head, its jobs and what they started. Ray puts workers in groups and sessions of their own, but all inherit the
# mark; its agents overwrite their environment with a title, but keep log files in the private folder open.
members() {
  [[ -f "$state/temp_dir" ]] || return 0
  local folder
  folder="$(<"$state/temp_dir")"
  if [[ -d /proc/self ]]; then
    {
      grep -lzsFx "PFSCALE_LOCAL_HEAD=$folder" /proc/[0-9]*/environ || true
      find /proc/[0-9]*/fd -lname "$folder/*" 2>/dev/null || true
    } | cut -d/ -f3 | sort -u
  else
    ps -A -o pid=,pgid= | awk -v group="$(<"$pid_file")" '$2 == group { print $1 }'
  fi
}

running() { [[ -f "$pid_file" ]] && members | grep -x "$(<"$pid_file")" >/dev/null; }   # not -q: it would end before `members`, a failure under pipefail

free_ports() {
  python - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}

make_token() {
  (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$token_file")
  chmod 600 "$token_file"
}

user_lines() {
  echo "export RAY_API_SERVER_ADDRESS=$(<"$state/address")    # where \`ray job submit\` and \`pfscale submit\` go"
  echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token_file"
}

start() {
  running && { echo "already running (pid $(<"$pid_file"))"; user_lines; return 0; }
  stop >/dev/null   # what an unclean end left behind
  command -v ray >/dev/null || fail "no \`ray\` on the PATH; activate the environment that pfscale is installed in" 2
  mkdir -p "$state"
  chmod 700 "$state"
  [[ -s "$token_file" ]] || make_token
  local ports gcs dashboard agent client temp_dir
  read -r -a ports <<<"$(free_ports 4)"
  gcs="${PFSCALE_GCS_PORT:-${ports[0]}}"
  dashboard="${PFSCALE_DASHBOARD_PORT:-${ports[1]}}"
  agent="${ports[2]}"
  client="${ports[3]}"
  temp_dir="$(mktemp -d "${TMPDIR:-/tmp}/pfs.XXXXXX")"   # short: Ray's socket paths must stay below 108 bytes
  echo "$temp_dir" >"$state/temp_dir"
  echo "http://127.0.0.1:$dashboard" >"$state/address"
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token_file" RAY_USAGE_STATS_ENABLED=0 DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true
  unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
  set -m   # a process group of its own: Ctrl-C in this terminal does not reach the head
  PFSCALE_LOCAL_HEAD="$temp_dir" ray start --head --block --disable-usage-stats --port="$gcs" --ray-client-server-port="$client" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --dashboard-agent-listen-port="$agent" --temp-dir="$temp_dir" \
    ${PFSCALE_NUM_CPUS:+--num-cpus="$PFSCALE_NUM_CPUS"} >"$state/head.log" 2>&1 </dev/null &
  echo $! >"$pid_file"
  disown
  set +m
  wait_until_up || { tail -n 20 "$state/head.log" >&2; stop >/dev/null; fail "the head did not come up within $start_timeout_s s; its log: $state/head.log"; }
  user_lines
}

# The job server answers with the token (and would refuse without).
wait_until_up() {
  local deadline=$((SECONDS + start_timeout_s))
  while ((SECONDS < deadline)); do
    kill -0 "$(<"$pid_file")" 2>/dev/null || return 1
    if python - "$(<"$state/address")" "$token_file" <<'PY'; then return 0; fi
import sys, urllib.request
request = urllib.request.Request(sys.argv[1] + "/api/jobs/", headers={"Authorization": "Bearer " + open(sys.argv[2]).read().strip()})
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    opener.open(request, timeout=2).read()
except OSError:
    sys.exit(1)
PY
    sleep 0.5
  done
  return 1
}

stop() {
  [[ -f "$state/temp_dir" ]] || { echo "not running"; return 0; }
  local folder deadline
  folder="$(<"$state/temp_dir")"
  deadline=$((SECONDS + stop_timeout_s))
  running && kill -TERM "$(<"$pid_file")"   # `ray start --block` ends what it started; the others get their turn after 3 s
  while [[ -n "$(members)" ]]; do
    ((SECONDS < deadline)) || fail "these processes did not end: $(members | tr '\n' ' ')"
    ((SECONDS < deadline - stop_timeout_s + 3)) || members | xargs -r kill -TERM 2>/dev/null || true
    ((SECONDS < deadline - stop_timeout_s + 8)) || members | xargs -r kill -KILL 2>/dev/null || true
    sleep 0.5
  done
  [[ "$folder" == */pfs.* ]] && rm -rf -- "$folder"
  rm -f -- "$pid_file" "$state/temp_dir" "$state/address"
  echo "stopped"
}

status() {
  running || { echo "not running"; return 3; }
  echo "running (pid $(<"$pid_file"))"
  user_lines
}

case "${1:-}" in
  start | stop | status) "$1" ;;
  *) usage; exit 2 ;;
esac
