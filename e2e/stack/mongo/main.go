// A server that speaks MongoDB's protocol: FerretDB over SQLite, at the address of its first argument, with its data in
// the folder of the second. With a third one, it speaks TLS, by tls.crt and tls.key of that folder. It has no time-series
// collections.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	listener := ferretdb.ListenerConfig{TCP: os.Args[1]}
	if len(os.Args) > 3 {
		listener = ferretdb.ListenerConfig{
			TLS:         os.Args[1],
			TLSCertFile: os.Args[3] + "/tls.crt",
			TLSKeyFile:  os.Args[3] + "/tls.key",
		}
	}
	f, err := ferretdb.New(&ferretdb.Config{
		Listener:  listener,
		Handler:   "sqlite",
		SQLiteURL: "file:" + os.Args[2] + "/",
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := f.Run(ctx); err != nil {
		log.Fatal(err)
	}
}
