package main

import (
	"testing"

	"github.com/monochromegane/cargo/queue"
)

// A worker that lacks a label is not meant by an empty value of it.
func TestCalled(t *testing.T) {
	w := queue.Worker{Name: "a-1", Labels: map[string]string{"zone": "a"}}
	for who, want := range map[string]bool{
		"a-1": true, "zone=a": true,
		"a-2": false, "zone=b": false, "zone": false, "zone=": false, "os=": false, "=": false, "=a": false, "": false,
	} {
		if got := called(w, who); got != want {
			t.Errorf("called(%q) = %t, want %t", who, got, want)
		}
	}
}
