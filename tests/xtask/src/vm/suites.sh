# Runs every test of every suite in /suites as a process of its own; see boot.rs for the marks.
exec > /dev/ttyS1 2>&1 < /dev/null
stty -F /dev/ttyS1 raw
echo "## booted: Linux $(uname -r), cgroup v2: $(cat /sys/fs/cgroup/cgroup.controllers)"
for suite in /suites/*; do
    . "$suite/settings"
    cd "$folder" || cd /
    echo "## suite $name"
    begun=$(date +%s)
    # shellcheck disable=SC2086
    "$suite/test" --list --format terse $filters | sed -n 's/: test$//p' > /run/tests
    while read -r test; do
        started=$(date +%s)
        if ! timeout "$limit" "$suite/test" --exact "$test" --nocapture > /run/output 2>&1; then
            cat /run/output
            echo "## failed $test ($(($(date +%s) - started)) s)"
        elif grep -q '^skipped: ' /run/output; then
            echo "## skipped $test: $(sed -n 's/^skipped: //p' /run/output | head -n 1)"
        elif grep -q ' 1 ignored; ' /run/output; then
            echo "## skipped $test: ignored"
        else
            echo "## passed $test ($(($(date +%s) - started)) s)"
        fi
    done < /run/tests
    echo "## ended $name after $(($(date +%s) - begun)) s"
done
echo "## done"
sync
poweroff -f
