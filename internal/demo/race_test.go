//go:build race

package demo

// raceEnabled: these tests run under the race detector, and so should the program that they test.
const raceEnabled = true
