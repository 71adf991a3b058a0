// Package meta is the meta role: it forms or joins a cluster, hosts the
// replicas of the control group and the namespace groups, and serves the meta
// and Raft services.
//
// # Parts
//
//   - meta/control and meta/namespace are the state machines: pure.
//   - formation.go makes a new cluster or joins one; links.go carries Raft's
//     bytes between meta nodes; maps.go publishes the cluster map that the
//     control group's local replica has applied.
//   - register.go admits nodes; registry.go keeps what heartbeats say; planner.go
//     turns it, on the control leader, into decisions by package repair;
//     sessions.go keeps the leases.
//   - balance.go evens out which node leads how many groups.
//   - members.go brings the members of each group to the list that the control
//     group keeps, replicas.go this node's replicas to the lists that name it.
//   - groups.go is what the leader of each group does in the background:
//     trimming of history, the delete queue, left-over intents.
//   - mutate.go serves the namespace; status.go explains the whole.
//
// # Invariants
//
//   - Only the applied state of a group decides. What is in a leader's memory
//     (heartbeats, renewals, suspicions) only ever delays or proposes, and is
//     collected anew by the next leader.
//   - No mutation is admitted before every listed meta node votes.
package meta
