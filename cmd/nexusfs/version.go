package main

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker (-X main.version=...); without it the build
// information says what it knows.
var version string

// versionString is the version that users see.
func versionString() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if rev == "" {
		return "devel"
	}
	return "devel-" + rev + dirty
}

// buildInfo says what this binary is.
type buildInfo struct {
	Version string `json:"version"`
	Format  int    `json:"store_format"`
	Control string `json:"control_protocol"`
	Go      string `json:"go"`
	System  string `json:"system"`
}

func versionVerb(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "print the version",
		Example: "  nexusfs version --json",
		Args:    cobra.NoArgs,
		RunE: action(func(context.Context, []string) error {
			v := buildInfo{versionString(), formatVersion, controlVersion, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			if asJSON {
				return a.printJSON(v)
			}
			a.printf("nexusfs %s (store format %d, %s, %s)\n", v.Version, v.Format, v.Go, v.System)
			return nil
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}
