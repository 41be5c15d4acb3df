package main

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets the test binary be the program: under the name cargo it runs main.
func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){"cargo": main})
}

// tests are all tests, and what is to be removed after them.
type tests struct{ *testing.M }

func (t tests) Run() int {
	defer library.remove()
	return t.M.Run()
}

func TestScripts(t *testing.T) {
	former, err := filepath.Abs("testdata/data/9d6b802.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: func(e *testscript.Env) error {
		e.Setenv("FORMER", former)
		return nil
	}})
}
