package chain

import (
	"encoding/json"
	"fmt"

	"nexusfs/meta"
)

// Lost is what the After of a recovery's record says: which revisions are not
// there, and why that is no damage (P33).
type Lost struct {
	First    int64  `json:"first"`    // revisions first to last were taken back
	Last     int64  `json:"last"`     // first-1: none was
	Reserved int64  `json:"reserved"` // and none up to here is ever issued
	Head     string `json:"head"`     // the chain head before the recovery
	Durable  int64  `json:"durable"`  // the last barrier

	// Where a server lost its tail (P15): the newest revision of which a daemon
	// knew, so that everything between is certainly lost, and how it was noticed.
	Known int64  `json:"known,omitempty"`
	Cause string `json:"cause,omitempty"`
}

// Sealed is a stored record with what the chain keeps beside it.
type Sealed struct {
	meta.Record
	Session int64
	Batch   int64 // records of the batch that ends here; 0: none does
	Head    Hash  // the chain head after it
}

// Name is what a zone was called when it was somewhere else: the batches up to
// revision Until, and behind those of the name before, are chained under it.
type Name struct {
	Until int64
	Name  string
}

// NameAt returns the name under which the batch that begins with a revision is
// chained: one of names, oldest first, or the zone's present one.
func NameAt(names []Name, zone string, rev int64) string {
	for _, n := range names {
		if rev <= n.Until {
			return n.Name
		}
	}
	return zone
}

// Check follows a stored chain, record by record, and reports what does not
// follow from what was before. It is pure but for Report. Findings:
// "record-digest" for a record that is not what was committed,
// "record-missing" for revisions without a record, "chain-head" for a batch
// whose head does not follow from its records and the head before, "chain-open"
// for records behind the last head, "chain-end" when the newest head is not the
// one that the zone's counters hold. Revisions that a recovery took back or
// skipped are no finding: its record names them (P33).
type Check struct {
	Zone   string
	Names  []Name // that the zone had before, oldest first
	Last   int64  // revision of the last record seen, or skipped on purpose
	Prev   int64  // revision of the last head
	Head   Hash   // the head at Prev
	Report func(meta.Finding)

	digests []Hash
	first   int64 // revision of digests[0]
}

func (v *Check) find(check string, rev int64, format string, args ...any) {
	v.Report(meta.Finding{Check: check, Rev: meta.Rev(rev), Text: fmt.Sprintf(format, args...)})
}

// Add looks at the next record, in revision order.
func (v *Check) Add(r *Sealed) {
	rev := int64(r.Rev)
	if rev != v.Last+1 && !v.recovered(r) {
		v.find("record-missing", v.Last+1, "revisions %d to %d have no record", v.Last+1, rev-1)
	}
	v.Last = rev
	if d := meta.RecordDigest(&r.Record, r.Session); d != r.Digest {
		v.find("record-digest", rev, "revision %d (%s) is not what was committed", rev, r.Kind)
	}
	if len(v.digests) == 0 {
		v.first = rev
	}
	v.digests = append(v.digests, r.Digest)
	if r.Batch == 0 {
		return
	}
	want := Next(v.Head, NameAt(v.Names, v.Zone, v.first), v.first, v.digests)
	if int64(len(v.digests)) != r.Batch || want != r.Head {
		v.find("chain-head", v.first, "the chain breaks in the batch of revisions %d to %d (%d records, %d were committed)",
			v.first, rev, len(v.digests), r.Batch)
	}
	v.Head, v.Prev, v.digests = r.Head, rev, v.digests[:0] // go on from what is stored
}

// recovered reports whether a recovery's record explains the gap before it.
func (v *Check) recovered(r *Sealed) bool {
	var l Lost
	return r.Kind == meta.OpRecovery && json.Unmarshal([]byte(r.After), &l) == nil &&
		l.First == v.Last+1 && int64(r.Rev) == max(l.Last, l.Reserved)+1
}

// End compares what was seen with the zone's counters.
func (v *Check) End(rev int64, head Hash) {
	if len(v.digests) > 0 {
		v.find("chain-open", v.first, "revisions %d to %d belong to no batch", v.first, v.Last)
	}
	if rev != v.Prev || head != v.Head {
		v.find("chain-end", v.Prev+1, "the newest head stands at revision %d, the zone's counters are at %d", v.Prev, rev)
	}
}
