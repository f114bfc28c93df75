// Command pstest serves Google's own fake of Pub/Sub, so that the tests of headrace's emulator can be held to it.
package main

import (
	"fmt"
	"io"
	"os"

	"cloud.google.com/go/pubsub/v2/pstest"
)

func main() {
	server := pstest.NewServerWithPort(0)
	defer server.Close()
	fmt.Println(server.Addr)
	// The end of whoever started this, however it comes, closes our standard input.
	_, _ = io.Copy(io.Discard, os.Stdin)
}
