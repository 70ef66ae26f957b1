//go:build race

package netns

// raceEnabled: these tests run under the race detector, and so should the program that they test.
const raceEnabled = true
