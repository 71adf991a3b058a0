package repair

import (
	"fmt"
	"strings"

	"dfsd/dfs"
)

// Decision is one thing the planner wants the control group to commit. The
// state machine checks each again when it applies it, against the state of that
// moment: the planner's may be older.
type Decision interface {
	fmt.Stringer
	decision()
}

// MarkDown declares a store down: a majority of the voters suspects it.
type MarkDown struct {
	Store       dfs.StoreID
	Incarnation dfs.Incarnation // that was watched: a later start is not meant
	Voters      []dfs.NodeID    // that suspect it; sorted
}

// MarkOut declares a store out: it was down for the grace period.
type MarkOut struct {
	Store       dfs.StoreID
	Incarnation dfs.Incarnation // that was watched: a later start is not meant
}

// SetTarget says where a PG should be; see Retarget.
type SetTarget struct {
	PG     dfs.PGID
	Target []dfs.StoreID // sorted
}

// ProposeSet proposes a PG's next acting set, in place of any earlier
// proposal; see CheckPropose.
type ProposeSet struct {
	PG     dfs.PGID
	Newest dfs.Epoch // the PG's newest epoch that the decision was made from
	Acting []dfs.StoreID
}

// ActivateSet makes a PG's proposal active; see CheckActivate.
type ActivateSet struct {
	PG    dfs.PGID
	Epoch dfs.Epoch // of the proposal
}

// CreatePGs makes the placement groups of a class. They get their targets from
// the next plan.
type CreatePGs struct {
	Class dfs.Class
	Count int
}

func (MarkDown) decision()    {}
func (MarkOut) decision()     {}
func (SetTarget) decision()   {}
func (ProposeSet) decision()  {}
func (ActivateSet) decision() {}
func (CreatePGs) decision()   {}

func (d MarkDown) String() string {
	var voters []string
	for _, v := range d.Voters {
		voters = append(voters, v.String())
	}
	return fmt.Sprintf("down %v, suspected by %s", d.Store, strings.Join(voters, " "))
}

func (d MarkOut) String() string   { return fmt.Sprintf("out %v", d.Store) }
func (d SetTarget) String() string { return fmt.Sprintf("target %v = %v", d.PG, d.Target) }

func (d ProposeSet) String() string {
	return fmt.Sprintf("propose %v = %v after epoch %d", d.PG, d.Acting, d.Newest)
}

func (d ActivateSet) String() string { return fmt.Sprintf("activate %v at epoch %d", d.PG, d.Epoch) }
func (d CreatePGs) String() string   { return fmt.Sprintf("create %d PGs of %v", d.Count, d.Class) }
