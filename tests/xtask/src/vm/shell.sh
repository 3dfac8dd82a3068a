# An interactive session on the first serial line.
echo "programs in /programs, suites in /suites; 'poweroff -f' ends the machine"
exec setsid cttyhack sh
