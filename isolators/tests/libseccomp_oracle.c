/* Drives libseccomp by lines on standard input, for tests that compare our filters with its filters.
 *
 *   init ACTION            start a filter; the native architecture is in it
 *   arch TOKEN             add an architecture (token as a number)
 *   optimize LEVEL         2: binary tree
 *   rule ACTION NAME [INDEX OP A B]...
 *   export                 write the program to standard output and end
 *   resolve NAME TOKEN     print the call number and end the line
 *
 * A rule that libseccomp refuses ends the program with status 3. */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
	char line[4096], name[128];
	scmp_filter_ctx ctx = NULL;
	while (fgets(line, sizeof line, stdin)) {
		unsigned action, token, level;
		int used = 0;
		if (sscanf(line, "init %u", &action) == 1) {
			if (!(ctx = seccomp_init(action)))
				return 2;
			if (seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS))
				return 2;
		} else if (sscanf(line, "arch %u", &token) == 1) {
			int rc = seccomp_arch_add(ctx, token);
			if (rc && rc != -EEXIST)
				return 2;
		} else if (sscanf(line, "optimize %u", &level) == 1) {
			if (seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, level))
				return 2;
		} else if (sscanf(line, "rule %u %127s%n", &action, name, &used) == 2) {
			struct scmp_arg_cmp args[6];
			unsigned count = 0, index, op;
			unsigned long long a, b;
			char *rest = line + used;
			while (count < 6 && sscanf(rest, " %u %u %llu %llu%n", &index, &op, &a, &b, &used) == 4) {
				args[count++] = (struct scmp_arg_cmp){index, op, a, b};
				rest += used;
			}
			int number = seccomp_syscall_resolve_name(name);
			if (number == __NR_SCMP_ERROR)
				continue;
			if (seccomp_rule_add_array(ctx, action, number, count, args))
				return 3;
		} else if (sscanf(line, "resolve %127s %u", name, &token) == 2) {
			printf("%d\n", seccomp_syscall_resolve_name_arch(token, name));
		} else if (!strncmp(line, "export", 6)) {
			return seccomp_export_bpf(ctx, STDOUT_FILENO) ? 2 : 0;
		}
	}
	return 0;
}
