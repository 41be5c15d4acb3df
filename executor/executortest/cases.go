package executortest

import "strconv"

type testCase struct {
	name string
	run  func(*run)
}

var cases = []testCase{
	{"ExitZero", testExitZero},
	{"ExitStatus", testExitStatus},
}

func testExitZero(r *run) {
	if out := r.output(r.step("echo hello")); out != "hello\n" {
		r.Errorf("stdout %q", out)
	}
}

func testExitStatus(r *run) {
	for _, code := range []int{1, 2, 42, 126, 127, 255} {
		_, _, err := r.run(r.Context(), r.step("exit "+strconv.Itoa(code)))
		r.exits(err, code)
	}
}
