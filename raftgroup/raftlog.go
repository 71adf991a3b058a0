package raftgroup

import (
	"fmt"
	"log/slog"
)

// raftLogger is what the library tells about one replica. Its panics are
// caught where the replica is stepped, and quarantine it.
type raftLogger struct{ log *slog.Logger }

func (l raftLogger) Debug(...any)                     {}
func (l raftLogger) Debugf(string, ...any)            {}
func (l raftLogger) Info(...any)                      {}
func (l raftLogger) Infof(string, ...any)             {}
func (l raftLogger) Warning(v ...any)                 { l.log.Debug(fmt.Sprint(v...)) }
func (l raftLogger) Warningf(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l raftLogger) Error(v ...any)                   { l.log.Warn(fmt.Sprint(v...)) }
func (l raftLogger) Errorf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l raftLogger) Fatal(v ...any)                   { panic(fmt.Sprint(v...)) }
func (l raftLogger) Fatalf(format string, v ...any)   { panic(fmt.Sprintf(format, v...)) }
func (l raftLogger) Panic(v ...any)                   { panic(fmt.Sprint(v...)) }
func (l raftLogger) Panicf(format string, v ...any)   { panic(fmt.Sprintf(format, v...)) }
