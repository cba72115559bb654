#!/usr/bin/env bash
# End this user's processes of this program on this machine.
pkill -u "$(id -u)" -f '[d]eepy\.py|[t]rain\.py|[g]enerate\.py|[e]val\.py' || true
