# Runs the tests that it is told to run, each as a process of its own; see boot.rs for what is said and answered.
exec > /dev/ttyS1 2>&1 < /dev/ttyS1
stty -F /dev/ttyS1 raw -echo
echo "## booted: Linux $(uname -r), cgroup v2: $(cat /sys/fs/cgroup/cgroup.controllers)"
echo "## ready"
while read -r suite test && [ "$suite" != end ]; do
    . "/suites/$suite/settings"
    cd "$folder" || cd /
    started=$(date +%s)
    timeout "$limit" "/suites/$suite/test" --exact "$test" --nocapture > /run/output 2>&1 < /dev/null
    status=$?
    took="($(($(date +%s) - started)) s)"
    if [ $status != 0 ]; then
        cat /run/output
        echo "## failed $suite $test $took"
    elif grep -q '^skipped: ' /run/output; then
        echo "## skipped $suite $test: $(sed -n 's/^skipped: //p' /run/output | head -n 1)"
    elif grep -q ' 1 ignored; ' /run/output; then
        echo "## skipped $suite $test: ignored"
    else
        grep '^emulated: ' /run/output
        echo "## passed $suite $test $took"
    fi
    echo "## ready"
done
echo "## done"
sync
poweroff -f
