// Probe is the program inside the test image that sees what a shell cannot.
package main

import "os"

func main() {
	os.Exit(0)
}
