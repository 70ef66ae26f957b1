package observe

// Loss is something that Queries had no room for, or could not count.
type Loss uint8

// The losses. Only the first concerns queries that are not counted at all.
const (
	LossNoClient  Loss = iota // a query without a valid client address: not counted
	LossQuestion              // a question was forgotten too early to know it again when it is repeated
	LossUndecided             // a repeated question could not be told from polling: too many at a time
	LossStory                 // a slow or failed query's story was overwritten by newer ones
	LossStep                  // an exchange that did not fit into its query's story

	// NumLosses is the number of kinds of losses.
	NumLosses = int(LossStep) + 1
)

var lossNames = [NumLosses]string{"no_client", "question", "undecided", "story", "step"}

// String is the loss's name in metrics and the API.
func (l Loss) String() string { return nameOf(lossNames[:], "loss", uint8(l)) }
