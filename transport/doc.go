// Package transport carries requests between the processes of a cluster: dRPC
// servers and connection pools over an injected network, with a handshake that
// keeps strangers out, mutual TLS, limits and deadlines on everything, and
// errors that keep their kind on the way.
//
// # Nouns
//
//   - A [Network] makes listeners and connections: [TCP], or one [Host] of a
//     simulated [Memory] network.
//   - An [Identity] is what a process says of itself in the handshake: cluster,
//     kind, node, incarnation. What the other side said is a [Peer], which
//     handlers read with [PeerFrom].
//   - A [Server] accepts connections and serves the registered services.
//   - A [Pool] holds connections by address; the [PeerConn] it hands out is a
//     drpc.Conn for the generated clients. A connection carries one request or
//     stream at a time.
//   - [Retry] repeats what was certainly not applied, with back-off, jitter and a
//     [Budget].
//
// # Invariants
//
//   - No request of a process of another cluster reaches a handler, and a
//     process that does not know its cluster reaches the open methods only.
//   - An error of kind Unavailable from a PeerConn means that no handler saw
//     the request, or that the handler itself said so; when it may have been
//     seen and no answer came, the kind is Unknown, or Deadline.
//   - Nothing above [dfs.MaxMessage] is buffered for a peer, and a message that has
//     begun must be complete within a time limit.
//   - Every goroutine of a Server or Pool has ended when Close returns.
//
// The services themselves are generated in transport/wire; what they mean is
// the business of the packages that implement them. This package does not look
// into messages.
package transport
