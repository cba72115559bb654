# Sourced by its neighbours: sets `on_hosts`, the options with which pdsh and pdcp reach all hosts of the job at once.
# The hosts are those of the file DLTS_HOSTFILE, else /job/hostfile, else /job/hosts.
for file in "${DLTS_HOSTFILE:-}" /job/hostfile /job/hosts; do
    if [[ -f $file ]]; then break; fi
done
if [[ ! -f $file ]]; then
    echo "error: no hostfile: set DLTS_HOSTFILE to one, or write /job/hostfile" >&2
    exit 1
fi
on_hosts=(-R ssh -f 1024 -w "$(sed 's/#.*//' "$file" | awk 'NF { print $1 }' | paste -sd,)")
