from sabot.operators.agents.batches import BatchAgentOperator as BatchAgentOperator
from sabot.operators.agents.batches import decoded as decoded
from sabot.operators.agents.counters import Counters as Counters
from sabot.operators.agents.durable import DurableAgentOperator as DurableAgentOperator
from sabot.operators.agents.kinds import agent_operator as agent_operator
from sabot.operators.agents.operator import AgentOperator as AgentOperator
from sabot.operators.agents.operator import Port as Port
from sabot.operators.agents.records import RecordAgentOperator as RecordAgentOperator
