// Package repair judges and decides: which stores are suspect, down and out,
// where each placement group (PG) should be, and by which steps of its acting
// set it gets there without ever losing an acknowledged block. Storage nodes
// move the bytes. The package is a pure core: values in, values out; no I/O,
// no goroutine, and every time is handed in.
//
// # Nouns
//
//   - A [Detector] is one meta node's suspicion of the stores that report
//     to it: silent ones, and those whose disk is sick.
//   - A [Vote] is what one meta node suspects; a [Tally] says which stores a
//     majority of the control group's voters does.
//   - [Plan] compares the map with the wishes and returns [Decision]s.
//   - A check ([CheckPropose], [CheckActivate]) says whether a step is allowed,
//     and a transition ([Propose], [Activate], [RefillDone], [ResetMember],
//     [Retarget]) takes it: from one PG to a changed copy.
//
// # The steps of a placement group
//
//	          Propose(e)                    Activate
//	┌────────┐ ──────────▶ ┌──────────────┐ ──────────▶ ┌──────────────┐
//	│ active │             │ active a,    │             │ active e     │
//	│ at a   │             │ proposed e   │             │ (a is over)  │
//	└────────┘             └──────────────┘             └──────────────┘
//	                         │  ▲ Propose(f), f > e:
//	                         └──┘ supersedes
//
//	               Activate                 RefillDone
//	┌────────────┐ ─────────▶ ┌───────────┐ ───────────▶ ┌──────────┐
//	│ not acting │            │ refilling │              │ complete │
//	│ c, joined 0│            │ c < active│              │ c=active │
//	└────────────┘            └───────────┘              └──────────┘
//	   ▲   ▲    leaves acting       │                       │   │ ResetMember:
//	   │   └───────────────────────┘                        │   ▼ c=0, joined 0
//	   └────────────────────────────────────────────────────┘  (activated anew)
//
// # Invariants
//
//   - A block is acknowledged by every store of one active set. A set is
//     activated only after every member has persisted its epoch, and with at
//     least one complete member of the set before it (as many as the class
//     needs): that member acknowledges nothing under the old epoch any more and
//     holds all that was acknowledged.
//   - Only complete members count as copies. None left among the living means
//     the PG is stalled: nobody is replaced, nothing is dropped.
//   - A set below the class's minimum is never activated.
//   - A minority decides nothing.
//
// Package meta calls it: the control leader plans, and the control group's
// state machine checks each decision again when it applies it.
package repair
