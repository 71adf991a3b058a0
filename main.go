// Dfsd is a distributed file system in one binary.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"dfsd/cli"
	"dfsd/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := cli.Main(ctx, os.Args[1:], cli.Process{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Environ(), Serve: node.Run,
	})
	stop()
	os.Exit(code)
}
