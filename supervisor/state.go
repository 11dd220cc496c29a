package supervisor

// This file is the whole behaviour of the master as two tables: what the
// master as such is doing, and what becomes of each worker. Both are pure
// functions; everything that touches the system reads its orders here.

// phase is what the master as a whole is doing.
type phase uint8

const (
	phaseStarting  phase = iota // the first generation is on its way
	phaseStartMore              // the same, and an upgrade was asked for
	phaseServing                // one generation serves
	phaseUpgrading              // one serves, the next is on its way
	phaseMore                   // the same, and one more upgrade was asked for
	phaseLastHope               // the serving one was given up, the next is on its way
	phaseHopeMore               // the same, and one more upgrade was asked for
	phaseStopping               // everything drains
	phaseEnding                 // everything is killed
	phaseEnded                  // nothing is left
)

var phaseNames = [...]string{"starting", "starting", "serving", "upgrading", "upgrading", "upgrading", "upgrading", "stopping", "stopping", "ended"}

func (p phase) String() string { return phaseNames[p] }

// event is what happens to the master.
type event uint8

const (
	evUpgrade event = iota // SIGHUP
	evStop                 // SIGTERM, SIGINT
	evStopNow              // SIGQUIT
	evReady                // the generation on its way is ready, all of it
	evFailed               // the generation on its way will not be
	evGaveUp               // the serving generation's workers are not replaced any more
	evEmpty                // no process is left
	numEvents
)

// action is what the master does on the way to the next phase.
type action uint8

const (
	doNothing    action = iota
	doRemember          // say that the upgrade comes after the one under way
	doStart             // start the next generation
	doPromote           // the next generation serves, the old one drains
	doPromoteNew        // the same, and start one more
	doFail              // say why, end what was started, keep the old one
	doFailNew           // the same, and start one more
	doLose              // say that the serving generation was given up
	doTooLate           // say that nothing follows any more
	doFailEnd           // the first generation failed: end with its status
	doStop              // drain all
	doGiveUp            // drain all and end with the lost worker's status
	doKill              // end all
	doExit              // close the sockets and return
)

type masterStep struct {
	to phase
	do action
}

// next is the master's table. What is not in it changes nothing: a late event
// meets a phase that has passed.
func next(p phase, e event) (phase, action) {
	if step, ok := masterTable[p][e]; ok {
		return step.to, step.do
	}
	return p, doNothing
}

var masterTable = [...]map[event]masterStep{
	phaseStarting: {
		evUpgrade: {phaseStartMore, doRemember},
		evStop:    {phaseStopping, doStop},
		evStopNow: {phaseEnding, doKill},
		evReady:   {phaseServing, doPromote},
		evFailed:  {phaseStopping, doFailEnd},
	},
	phaseStartMore: {
		evStop:    {phaseStopping, doStop},
		evStopNow: {phaseEnding, doKill},
		evReady:   {phaseUpgrading, doPromoteNew},
		evFailed:  {phaseStopping, doFailEnd},
	},
	phaseServing: {
		evUpgrade: {phaseUpgrading, doStart},
		evStop:    {phaseStopping, doStop},
		evStopNow: {phaseEnding, doKill},
		evGaveUp:  {phaseStopping, doGiveUp},
	},
	phaseUpgrading: {
		evUpgrade: {phaseMore, doRemember},
		evStop:    {phaseStopping, doStop},
		evStopNow: {phaseEnding, doKill},
		evReady:   {phaseServing, doPromote},
		evFailed:  {phaseServing, doFail},
		evGaveUp:  {phaseLastHope, doLose},
	},
	phaseMore: {
		evStop:    {phaseStopping, doStop},
		evStopNow: {phaseEnding, doKill},
		evReady:   {phaseUpgrading, doPromoteNew},
		evFailed:  {phaseUpgrading, doFailNew},
		evGaveUp:  {phaseHopeMore, doLose},
	},
	phaseLastHope: {
		evUpgrade: {phaseHopeMore, doRemember},
		evStop:    {phaseStopping, doStop},
		evStopNow: {phaseEnding, doKill},
		evReady:   {phaseServing, doPromote},
		evFailed:  {phaseStopping, doGiveUp},
	},
	phaseHopeMore: {
		evStop:    {phaseStopping, doStop},
		evStopNow: {phaseEnding, doKill},
		evReady:   {phaseUpgrading, doPromoteNew},
		evFailed:  {phaseLastHope, doFailNew},
	},
	phaseStopping: {
		evUpgrade: {phaseStopping, doTooLate},
		evStop:    {phaseEnding, doKill},
		evStopNow: {phaseEnding, doKill},
		evEmpty:   {phaseEnded, doExit},
	},
	phaseEnding: {
		evEmpty: {phaseEnded, doExit},
	},
	phaseEnded: {},
}

// workerState is where a worker's process is between fork and reap.
type workerState uint8

const (
	starting    workerState = iota // forked, not known to be ready
	serving                        // ready
	settling                       // gets nothing new; handshakes and queue run empty
	quiescing                      // its connections are left to end by themselves
	draining                       // has the drain signal
	terminating                    // was told to leave, has the grace left
	killing                        // has SIGKILL
	clearing                       // main process gone, the rest of its tree is being ended
	gone                           // nothing of it is left
)

var workerStateNames = [...]string{"starting", "serving", "settling", "quiescing", "draining", "terminating", "killing", "clearing", "gone"}

func (s workerState) String() string { return workerStateNames[s] }

// workerEvent is what happens to a worker.
type workerEvent uint8

const (
	wReady    workerEvent = iota // it accepts, it said so, or it lived long enough
	wDeadline                    // the state's time is over
	wEmpty                       // settling: queue empty; quiescing: no connection left
	wRetire                      // others serve from now on: drain
	wEnd                         // leave early: the upgrade failed, or too many drain
	wKill                        // at once
	wExited                      // its main process has ended
	wCleared                     // nothing of its tree is left
	numWorkerEvents
)

// workerAction is what is done on the way to the next state.
type workerAction uint8

const (
	wNothing   workerAction = iota
	wServe                  // take part in serving
	wSettle                 // wait for handshakes and queue
	wQuiesce                // wait for connections
	wDrain                  // send the drain signal
	wDrainFast              // the same, with the grace for a limit
	wTerminate              // send TERM
	wKillAll                // KILL to the process group
	wClear                  // find what is left of the tree and end it
	wKillRest               // KILL to what is left of the tree
	wForget                 // give its members back
)

type workerStep struct {
	to workerState
	do workerAction
}

// nextWorker is the worker's table; what is not in it changes nothing.
func nextWorker(s workerState, e workerEvent) (workerState, workerAction) {
	if step, ok := workerTable[s][e]; ok {
		return step.to, step.do
	}
	return s, wNothing
}

var workerTable = [...]map[workerEvent]workerStep{
	starting: {
		wReady:    {serving, wServe},
		wDeadline: {terminating, wTerminate},
		wRetire:   {settling, wSettle},
		wEnd:      {terminating, wTerminate},
		wKill:     {killing, wKillAll},
		wExited:   {clearing, wClear},
	},
	serving: {
		wRetire: {settling, wSettle},
		wEnd:    {draining, wDrainFast},
		wKill:   {killing, wKillAll},
		wExited: {clearing, wClear},
	},
	settling: {
		wEmpty:    {quiescing, wQuiesce},
		wDeadline: {draining, wDrain},
		wEnd:      {draining, wDrainFast},
		wKill:     {killing, wKillAll},
		wExited:   {clearing, wClear},
	},
	quiescing: {
		wEmpty:    {draining, wDrain},
		wDeadline: {draining, wDrain},
		wEnd:      {draining, wDrainFast},
		wKill:     {killing, wKillAll},
		wExited:   {clearing, wClear},
	},
	draining: {
		wDeadline: {terminating, wTerminate},
		wEnd:      {terminating, wTerminate},
		wKill:     {killing, wKillAll},
		wExited:   {clearing, wClear},
	},
	terminating: {
		wDeadline: {killing, wKillAll},
		wKill:     {killing, wKillAll},
		wExited:   {clearing, wClear},
	},
	killing: {
		wDeadline: {killing, wKillAll},
		wExited:   {clearing, wClear},
	},
	clearing: {
		wDeadline: {clearing, wKillRest},
		wKill:     {clearing, wKillRest},
		wEnd:      {clearing, wKillRest},
		wCleared:  {gone, wForget},
	},
	gone: {},
}
