//go:build !race

package netns

// raceEnabled: see race_test.go.
const raceEnabled = false
