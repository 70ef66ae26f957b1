// Package cli holds what all subcommands share: exit statuses and the help text of flags.
package cli

// Exit statuses of every subcommand.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2
)
