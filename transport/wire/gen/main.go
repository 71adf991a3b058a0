// Command gen compiles the .proto files of a directory and writes the Go code
// of their messages and services beside them. It needs nothing but Go: the
// compiler is a library and the two plugins are tools of this module.
//
//	go run ./transport/wire/gen [DIR]    (the default is the working directory)
package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// plugins are the generators, each with its parameters.
var plugins = []struct{ tool, param string }{
	{"protoc-gen-go", "paths=source_relative"},
	{"protoc-gen-go-drpc", "paths=source_relative,json=false,protolib=dfsd/transport/wire/codec"},
}

func main() {
	dir := "."
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	if err := run(dir); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	files, err := generate(context.Background(), dir)
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate returns the generated files of the .proto files in dir, by name.
func generate(ctx context.Context, dir string) (map[string][]byte, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.proto"))
	if err != nil || len(names) == 0 {
		return nil, cmp.Or(err, fmt.Errorf("no .proto files in %s", dir))
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard, // comments
	}
	compiled, err := compiler.Compile(ctx, names...)
	if err != nil {
		return nil, err
	}
	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: names, ProtoFile: inOrder(compiled)}
	out := make(map[string][]byte)
	for _, p := range plugins {
		request.Parameter = proto.String(p.param)
		if err := runPlugin(ctx, dir, p.tool, request, out); err != nil {
			return nil, fmt.Errorf("%s: %w", p.tool, err)
		}
	}
	return out, nil
}

// inOrder returns the descriptors with every file after those it imports.
func inOrder(files linker.Files) []*descriptorpb.FileDescriptorProto {
	var out []*descriptorpb.FileDescriptorProto
	var seen []string
	var visit func(protoreflect.FileDescriptor)
	visit = func(f protoreflect.FileDescriptor) {
		if slices.Contains(seen, f.Path()) {
			return
		}
		seen = append(seen, f.Path())
		for i := range f.Imports().Len() {
			visit(f.Imports().Get(i).FileDescriptor)
		}
		out = append(out, protoutil.ProtoFromFileDescriptor(f))
	}
	for _, f := range files {
		visit(f)
	}
	return out
}

func runPlugin(ctx context.Context, dir, tool string, request *pluginpb.CodeGeneratorRequest, out map[string][]byte) error {
	in, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", tool)
	cmd.Dir, cmd.Stdin, cmd.Stderr = dir, bytes.NewReader(in), os.Stderr
	answer, err := cmd.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(answer, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, f := range response.File {
		text, err := format.Source(mend([]byte(f.GetContent())))
		if err != nil {
			return fmt.Errorf("%s: %w", f.GetName(), err)
		}
		out[f.GetName()] = text
	}
	return nil
}

var (
	versionLine = regexp.MustCompile(`(?m)^// protoc-gen-go-drpc version: .*\n`)
	unmarshal   = regexp.MustCompile(`(?m)^func \((drpcEncoding_\w+)\) Unmarshal\(`)
)

// mend makes two changes to the code of a service: the line that depends on
// how the plugin was built goes, and the encoding gets the method by which a
// stream marshals straight into its own buffer, which the plugin writes for
// its two built-in libraries only.
func mend(text []byte) []byte {
	text = versionLine.ReplaceAll(text, nil)
	return unmarshal.ReplaceAll(text, []byte(`func ($1) MarshalAppend(buf []byte, msg drpc.Message) ([]byte, error) {
	return codec.MarshalAppend(buf, msg)
}

$0`))
}
