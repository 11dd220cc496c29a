package machine

// This file is the behaviour of the master as four tables: what the master as
// such is doing, and what becomes of each generation, slot and worker. What is
// not in a table changes nothing.

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

// masterEvent is what happens to the master.
type masterEvent uint8

const (
	evUpgrade masterEvent = iota // SIGHUP
	evStop                       // SIGTERM, SIGINT
	evStopNow                    // SIGQUIT
	evReady                      // new connections go to the generation on its way
	evFailed                     // the generation on its way will not serve
	evGaveUp                     // the serving generation's workers are not replaced any more
	evEmpty                      // no process is left
	numMasterEvents
)

// masterAction is what the master does on the way to the next phase.
type masterAction uint8

const (
	doNothing    masterAction = iota
	doRemember                // say that the upgrade comes after the one under way
	doStart                   // start the next generation
	doPromote                 // the next generation serves, the old one drains
	doPromoteNew              // the same, and start one more
	doFail                    // say why, end what was started, keep the old one
	doFailNew                 // the same, and start one more
	doLose                    // say that the serving generation was given up
	doTooLate                 // say that nothing follows any more
	doFailEnd                 // the first generation failed: end with its status
	doStop                    // drain all
	doGiveUp                  // drain all and end with the lost worker's status
	doKill                    // end all
	doExit                    // close the sockets and return
)

type masterStep struct {
	to phase
	do masterAction
}

var masterTable = [...]map[masterEvent]masterStep{
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

// generationState is where one start of the program is.
type generationState uint8

const (
	joining   generationState = iota // its sockets are being made
	coming                           // its workers start
	switching                        // all are ready; the kernel is told
	current                          // new connections go to it
	retired                          // others serve: its workers drain
	failed                           // it never served: its workers are ended
)

var generationStateNames = [...]string{"joining", "coming", "switching", "current", "retired", "failed"}

func (s generationState) String() string { return generationStateNames[s] }

type generationEvent uint8

const (
	geFurnished generationEvent = iota // it has its sockets
	geReady                            // all its workers are ready
	geSwitched                         // the kernel steers to it, on every address
	geRetire                           // others serve from now on
	geFail                             // it will not serve
	geCut                              // nobody serves from now on
	numGenerationEvents
)

type generationAction uint8

const (
	gNothing generationAction = iota
	gStart                    // start its workers
	gSwitch                   // tell the kernel: Machine.steer
	gServe                    // the master's evReady
	gRetire                   // let its workers drain
	gEnd                      // end its workers, give the sockets back
)

type generationStep struct {
	to generationState
	do generationAction
}

var generationTable = [...]map[generationEvent]generationStep{
	joining: {
		geFurnished: {coming, gStart},
		geFail:      {failed, gEnd},
	},
	coming: {
		geReady: {switching, gSwitch},
		geFail:  {failed, gEnd},
	},
	switching: {
		geSwitched: {current, gServe},
		geFail:     {retired, gRetire}, // the kernel may have sent it somebody by now
	},
	current: {
		geRetire: {retired, gRetire},
		geCut:    {retired, gNothing},
	},
	retired: {},
	failed:  {},
}

// slotState is what becomes of a worker's place in its generation.
type slotState uint8

const (
	slotJoining   slotState = iota // its sockets are being made
	slotFree                       // has its sockets; nobody is there, nobody is planned
	slotTaken                      // has a worker
	slotRescue                     // the same, once more, to serve what waits in its queue
	slotWaiting                    // the replacement is due at a time
	slotSpent                      // its worker is not replaced any more
	slotLent                       // its sockets serve a later generation's start
	slotLentSpent                  // the same, and its worker was not to be replaced
	slotOwed                       // lent and retired: serves what waits if that generation does not
	slotParting                    // retired without a worker: the kernel is told to send it nothing new
	slotCounting                   // the same, and it has been: what waits in its queue?
	slotGone                       // has given its sockets back
)

var slotStateNames = [...]string{"joining", "free", "taken", "rescue", "waiting", "spent", "lent", "lent", "lent", "parting", "counting", "gone"}

func (s slotState) String() string { return slotStateNames[s] }

type slotEvent uint8

const (
	seStart   slotEvent = iota // a worker is started
	seLeft                     // its worker is gone
	seRestart                  // its worker shall be replaced, at a time
	seGiveUp                   // its worker shall not be replaced
	seDue                      // the time has come
	seLend                     // a new generation takes the sockets of a dead one
	seBack                     // that generation has failed and is gone
	seRetire                   // others serve
	seApart                    // the kernel sends it nothing new any more
	seQueue                    // somebody waits in its queue
	seEmpty                    // nobody does
	seCut                      // at once, although somebody may wait
	seDrop                     // at once: it does not matter who waits
	numSlotEvents
)

type slotAction uint8

const (
	slNothing slotAction = iota
	slStart              // fork
	slRetire             // its worker drains
	slCount              // look at the queue
	slRescue             // start the program once more, to serve what waits
	slRelease            // give the sockets back
	slLose               // the same, and say who is lost
)

type slotStep struct {
	to slotState
	do slotAction
}

var slotTable = [...]map[slotEvent]slotStep{
	slotJoining: {
		seStart:  {slotTaken, slStart},
		seRetire: {slotGone, slRelease},
		seDrop:   {slotGone, slRelease},
	},
	slotFree: {
		seStart:   {slotTaken, slStart},
		seRestart: {slotWaiting, slNothing},
		seGiveUp:  {slotSpent, slNothing},
		seRetire:  {slotParting, slNothing},
		seCut:     {slotGone, slLose},
		seDrop:    {slotGone, slRelease},
	},
	slotTaken: {
		seLeft:   {slotFree, slNothing},
		seRetire: {slotTaken, slRetire},
	},
	slotRescue: {
		seLeft: {slotGone, slLose},
	},
	slotWaiting: {
		seDue:    {slotTaken, slStart},
		seLend:   {slotLent, slNothing},
		seRetire: {slotParting, slNothing},
		seDrop:   {slotGone, slRelease},
	},
	slotSpent: {
		seLend:   {slotLentSpent, slNothing},
		seRetire: {slotGone, slLose},
		seDrop:   {slotGone, slRelease},
	},
	slotLent: {
		seBack:   {slotWaiting, slNothing},
		seRetire: {slotOwed, slNothing},
		seDrop:   {slotGone, slRelease},
	},
	slotLentSpent: {
		seBack:   {slotSpent, slNothing},
		seRetire: {slotGone, slRelease},
		seDrop:   {slotGone, slRelease},
	},
	slotOwed: {
		seBack: {slotParting, slNothing},
		seDrop: {slotGone, slRelease},
	},
	slotParting: {
		seApart: {slotCounting, slCount},
		seDrop:  {slotGone, slRelease},
	},
	slotCounting: {
		seQueue: {slotRescue, slRescue},
		seEmpty: {slotGone, slRelease},
		seCut:   {slotGone, slLose},
		seDrop:  {slotGone, slRelease},
	},
	slotGone: {},
}

// workerState is where a worker's process is between the order to start it and
// the moment when nothing of it is left.
type workerState uint8

const (
	forking         workerState = iota // ordered; the program does not run yet
	forkingOld                         // the same, and it shall drain at once
	forkingEnd                         // the same, and it shall leave at once
	forkingKill                        // the same, and it shall be killed
	starting                           // runs, not known to be ready
	serving                            // ready
	parting                            // the kernel is told to send it nothing new
	settling                           // gets nothing new; handshakes and queue run empty
	quiescing                          // its connections are left to end by themselves
	draining                           // has the drain signal
	terminating                        // was told to leave, has the grace left
	killing                            // has SIGKILL
	clearing                           // main process gone, the rest of its tree is being ended
	gone                               // nothing of it is left
	numWorkerStates = iota
)

var workerStateNames = [...]string{"starting", "starting", "starting", "starting", "starting", "serving", "settling", "settling", "quiescing", "draining", "terminating", "killing", "clearing", "gone"}

func (s workerState) String() string { return workerStateNames[s] }

// workerEvent is what happens to a worker.
type workerEvent uint8

const (
	wForked      workerEvent = iota // it runs
	wStartFailed                    // it could not be started
	wReady                          // it accepts, it said so, or it lived long enough
	wDeadline                       // the state's time is over
	wApart                          // parting: the kernel sends it nothing new any more
	wEmpty                          // settling: queue empty; quiescing: no connection left
	wRetire                         // others serve from now on: drain
	wEnd                            // leave early: the upgrade failed, or too many drain
	wKill                           // at once
	wExited                         // its main process has ended
	wCleared                        // nothing of its tree is left
	numWorkerEvents
)

// workerAction is what is done on the way to the next state.
type workerAction uint8

const (
	wNothing   workerAction = iota
	wWatch                  // see whether it becomes ready
	wLate                   // say that it does not even run
	wServe                  // take part in serving
	wPart                   // have all that is new sent to others
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

var workerTable = [...]map[workerEvent]workerStep{
	forking: {
		wForked:      {starting, wWatch},
		wStartFailed: {gone, wForget},
		wDeadline:    {forkingEnd, wLate},
		wRetire:      {forkingOld, wNothing},
		wEnd:         {forkingEnd, wNothing},
		wKill:        {forkingKill, wNothing},
	},
	forkingOld: {
		wForked:      {parting, wPart},
		wStartFailed: {gone, wForget},
		wEnd:         {forkingEnd, wNothing},
		wKill:        {forkingKill, wNothing},
	},
	forkingEnd: {
		wForked:      {terminating, wTerminate},
		wStartFailed: {gone, wForget},
		wKill:        {forkingKill, wNothing},
	},
	forkingKill: {
		wForked:      {killing, wKillAll},
		wStartFailed: {gone, wForget},
	},
	starting: {
		wReady:    {serving, wServe},
		wDeadline: {terminating, wTerminate},
		wRetire:   {parting, wPart},
		wEnd:      {terminating, wTerminate},
		wKill:     {killing, wKillAll},
		wExited:   {clearing, wClear},
	},
	serving: {
		wRetire: {parting, wPart},
		wEnd:    {draining, wDrainFast},
		wKill:   {killing, wKillAll},
		wExited: {clearing, wClear},
	},
	parting: {
		wApart:    {settling, wSettle},
		wDeadline: {draining, wDrain},
		wEnd:      {draining, wDrainFast},
		wKill:     {killing, wKillAll},
		wExited:   {clearing, wClear},
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
