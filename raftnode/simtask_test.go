package raftnode

import (
	"nexusfs/meta"
	"nexusfs/raftnode/state"
)

// simTask is a task of a core on its way: what Node.doTask does with SQL.
type simTask struct {
	task
	calls []*call
	begun bool
	head  meta.Rev
}

// doTasks begins tasks that are not under way, and goes on with the others.
func (n *simNode) doTasks() {
	for _, t := range n.core.todo() {
		under := false
		for _, u := range n.tasks {
			under = under || u.task == t
		}
		if !under {
			n.tasks = append(n.tasks, &simTask{task: t})
		}
	}
	var left []*simTask
	for _, t := range n.tasks {
		if n.core != nil && !n.goOn(t) {
			left = append(left, t)
		}
	}
	n.tasks = left
}

// goOn does a task's next step and reports whether it is over.
func (n *simNode) goOn(t *simTask) bool {
	s := n.s
	if !t.begun {
		if s.sql.down || s.rand.IntN(3) > 0 {
			return false // SQL takes its time
		}
		t.begun = true
		n.begin(t)
		if n.core == nil {
			return true
		}
	}
	for _, cl := range t.calls {
		if !cl.finished() {
			return false
		}
		if cl.err != nil || cl.result.Code != state.OK {
			return true // again, if it is still to be done
		}
	}
	if t.kind == taskTruth {
		if z := n.core.st.Zones[simZone]; z == nil || z.Prefix < t.head {
			return true
		}
		n.core.agreed(t.term)
		n.drive()
	}
	return true
}

func (n *simNode) begin(t *simTask) {
	switch t.kind {
	case taskTruth:
		n.agree(t)
	case taskGap:
		z := n.core.st.Zones[simZone]
		if z.Epoch != n.s.sql.epoch || n.s.sql.rev < t.last {
			n.agree(t)
			return
		}
		if t.first = max(t.first, z.Prefix+1); t.first <= t.last {
			n.fill(t, t.first, t.last)
		}
	case taskFence:
		if _, ok := n.s.sql.fenced[t.session]; !ok {
			n.s.sql.fenced[t.session] = n.s.sql.rev
		}
		n.submit(t, &state.Fenced{SessionKey: state.SessionKey{Zone: simZone, ID: t.session}, Rev: n.s.sql.fenced[t.session]})
	}
}

func (n *simNode) submit(t *simTask, cmd state.Command) {
	cl := newCall(cmd)
	n.core.propose(cl)
	t.calls = append(t.calls, cl)
	n.drive()
}

func (n *simNode) fill(t *simTask, first, last meta.Rev) {
	var ops []meta.Committed
	for r := first; r <= last; r++ {
		ops = append(ops, simOp(r))
	}
	n.s.logf("%v fills %d to %d", n.id, first, last)
	t.calls = append(t.calls, n.announce(ops, state.Nobody))
}

// agree is Node.agree.
func (n *simNode) agree(t *simTask) {
	sql := &n.s.sql
	z := n.core.st.Zones[simZone]
	if z != nil && sql.epoch <= z.Epoch && sql.rev < max(z.Prefix, z.High) { // P15
		lost := sql.rev + 1
		sql.rev = max(z.Prefix, z.High) + 1
		sql.epoch = z.Epoch + 1
		for r := lost; r < sql.rev; r++ {
			sql.lost[r] = true
		}
		n.s.acked = 0 // what was acknowledged and lost is no promise any more
		n.s.logf("%v recovers SQL at %d in epoch %d", n.id, sql.rev, sql.epoch)
	}
	t.head = sql.rev
	switch {
	case z == nil || z.Epoch != sql.epoch:
		n.submit(t, &state.Advance{Zone: simZone, Epoch: sql.epoch, Rev: sql.rev})
	case sql.rev > z.Prefix:
		n.fill(t, z.Prefix+1, sql.rev)
	}
}
