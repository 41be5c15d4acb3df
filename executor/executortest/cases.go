package executortest

// A testCase holds one sentence of the contract, or a few that belong together.
type testCase struct {
	name string
	run  func(*run)
}

var cases = []testCase{
	{"Ping", testPing},

	{"ExitZero", testExitZero},
	{"ExitStatus", testExitStatus},
	{"ExitSignal", testExitSignal},
	{"CommandMissing", testCommandMissing},
	{"ImageMissing", testImageMissing},
	{"LeftRunning", testLeftRunning},
	{"Exited", testExited},
	{"ExitedNot", testExitedNot},

	{"Args", testArgs},
	{"Env", testEnv},
	{"Dir", testDir},
	{"DirDefault", testDirDefault},
	{"Stdin", testStdin},

	{"Streams", testStreams},
	{"OutputAsItAppears", testOutputAsItAppears},
	{"OutputComplete", testOutputComplete},
	{"OutputLongLine", testOutputLongLine},
	{"OutputSlowWriter", testOutputSlowWriter},
	{"OutputOnFailure", testOutputOnFailure},
	{"OutputNoneAfterRun", testOutputNoneAfterRun},
	{"OutputDiscarded", testOutputDiscarded},
	{"OutputWriterFails", testOutputWriterFails},
	{"OutputOneWriter", testOutputOneWriter},

	{"MountReadOnly", testMountReadOnly},
	{"MountWritable", testMountWritable},
	{"MountFlags", testMountFlags},
	{"MountForeignFiles", testMountForeignFiles},
	{"MountMissing", testMountMissing},
	{"MountNested", testMountNested},
	{"MountNestedOrder", testMountNestedOrder},
	{"MountNestedLink", testMountNestedLink},
	{"MountOverlay", testMountOverlay},

	{"CancelTerm", testCancelTerm},
	{"CancelKill", testCancelKill},
	{"CancelBefore", testCancelBefore},
	{"CancelWhenever", testCancelWhenever},
	{"Deadline", testDeadline},

	{"OutOfMemory", testOutOfMemory},
	{"OutOfMemoryChild", testOutOfMemoryChild},
	{"OutOfMemorySurvived", testOutOfMemorySurvived},
	{"ForkBomb", testForkBomb},
	{"TooManyProcesses", testTooManyProcesses},
	{"TooManyProcessesChild", testTooManyProcessesChild},
	{"TooManyProcessesSurvived", testTooManyProcessesSurvived},
	{"LimitThenCancel", testLimitThenCancel},
	{"Background", testBackground},
	{"CPUs", testCPUs},
	{"TmpBounded", testTmpBounded},

	{"Door", testDoor},
	{"DoorOnCancel", testDoorOnCancel},
	{"DoorUnused", testDoorUnused},

	{"NoNetwork", testNoNetwork},
	{"NoHostLoopback", testNoHostLoopback},
	{"NoAbstractSocket", testNoAbstractSocket},

	{"Unprivileged", testUnprivileged},
	{"SetuidPowerless", testSetuidPowerless},
	{"RootReadOnly", testRootReadOnly},
	{"TmpUsable", testTmpUsable},
	{"NoSys", testNoSys},
	{"ProcMasked", testProcMasked},
	{"Devices", testDevices},
	{"OwnProcessesOnly", testOwnProcessesOnly},
	{"SyscallsDenied", testSyscallsDenied},

	{"IDReused", testIDReused},
	{"Concurrent", testConcurrent},
	{"ReapNothing", testReapNothing},
	{"ReapAfterKill", testReapAfterKill},
}
