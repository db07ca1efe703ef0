package postgres

import "nexusfs/meta"

var (
	_ meta.Store    = (*Store)(nil)
	_ meta.Sessions = (*Store)(nil)
	_ meta.History  = (*Store)(nil)
	_ meta.Upkeep   = (*Store)(nil)
)
