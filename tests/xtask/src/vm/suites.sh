# Runs the tests that it is told to run, each as a process of its own; see boot.rs for what is said and answered.
# An error of the shell's own would end it, and process 1 with it: nothing here may be one.
exec > /dev/ttyS1 2>&1 < /dev/ttyS1
stty -F /dev/ttyS1 raw -echo

now() {
    read -r seconds rest < /proc/uptime
    echo "${seconds%.*}"
}

run() {
    . "/suites/$1/settings"
    cd "$folder" || cd /
    timeout -k 10 "$limit" "/suites/$1/test" --exact "$2" --nocapture > /run/output 2>&1 < /dev/null
}

echo "## booted: Linux $(uname -r), cgroup v2: $(cat /sys/fs/cgroup/cgroup.controllers)"
echo "## ready"
last=0
while :; do
    # An emulated serial line can lose what comes while nobody looks: what is not whole, or does not come, is asked for again.
    length='' number='' suite='' test=''
    read -r -t 5 length number suite test
    [ "$length" != end ] || break
    if [ "$length" != "$((${#number} + ${#suite} + ${#test}))" ] || [ -z "$test" ]; then
        echo "## again"
        continue
    fi
    # It came twice.
    [ "$number" != "$last" ] || continue
    last=$number
    started=$(now)
    (run "$suite" "$test")
    status=$?
    took="($(($(now) - ${started:-0})) s)"
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
