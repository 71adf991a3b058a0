// Package node joins the parts to one process: it opens the data directory,
// the stores and the network that its options name, starts the roles in order
// and stops them in the opposite one.
//
//	identity → engines → pool, server → meta role → storage role → HTTP
//
// It is the only package that imports config and all roles; package sim starts
// nodes through it with a simulated disk and network.
package node
