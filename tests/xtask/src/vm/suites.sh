# Runs every suite in /suites and reports on the second serial line; see boot.rs for the marks.
exec > /dev/ttyS1 2>&1 < /dev/null
stty -F /dev/ttyS1 raw
echo "## booted: Linux $(uname -r), cgroup v2: $(cat /sys/fs/cgroup/cgroup.controllers)"
for suite in /suites/*; do
    . "$suite/settings"
    cd "$folder" || cd /
    echo "## suite $name"
    begun=$(date +%s)
    # shellcheck disable=SC2086
    timeout "$limit" "$suite/test" --test-threads=1 --show-output $filters
    status=$?
    echo "## ended $name with $status after $(($(date +%s) - begun)) s"
done
echo "## done"
sync
poweroff -f
