-- Scores of games: boards of the best, players of each day as it goes on, a lake of partitions, and what is read from it again.
CREATE TABLE scores (
  player STRING, country STRING, game STRING, points INT, bonus MAP<STRING, INT>, at_ TIMESTAMP(3),
  WATERMARK FOR at_ AS at_ - INTERVAL '5' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'scores.json', 'format' = 'json');

CREATE TABLE board (country STRING, player STRING, points BIGINT, place BIGINT, PRIMARY KEY (country, place) NOT ENFORCED)
WITH ('connector' = 'jdbc', 'url' = 'jdbc:sqlite:board.db', 'table-name' = 'board');
CREATE TABLE active (until_ TIMESTAMP(3), players BIGINT, games BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'active.json', 'format' = 'json');
CREATE TABLE lake (player STRING, points INT, total_bonus INT, at_ TIMESTAMP(3), game STRING, dt STRING) PARTITIONED BY (game, dt)
WITH ('connector' = 'filesystem', 'path' = 'lake', 'format' = 'parquet', 'sink.partition-commit.policy.kind' = 'success-file');
CREATE TABLE bonuses WITH ('connector' = 'filesystem', 'path' = 'bonuses.json', 'format' = 'json') AS
SELECT kind, COUNT(*) AS n, SUM(amount) AS total, MAX(player) AS last_player
FROM scores CROSS JOIN UNNEST(bonus) AS b (kind, amount) GROUP BY kind;
CREATE TABLE streaks (player STRING, begun TIMESTAMP(3), n BIGINT, best INT)
WITH ('connector' = 'filesystem', 'path' = 'streaks.json', 'format' = 'json');

INSERT INTO board
SELECT country, player, points, place
FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY country ORDER BY points DESC, player) AS place
  FROM (SELECT country, player, SUM(points) AS points FROM scores WHERE country IS NOT NULL GROUP BY country, player)
)
WHERE place <= 3;

INSERT INTO active
SELECT window_end, COUNT(DISTINCT player), COUNT(DISTINCT game)
FROM TABLE(CUMULATE(TABLE scores, DESCRIPTOR(at_), INTERVAL '6' HOUR, INTERVAL '1' DAY))
GROUP BY window_start, window_end;

INSERT INTO lake
SELECT player, points, COALESCE(bonus['speed'], 0) + COALESCE(bonus['combo'], 0), at_, game, DATE_FORMAT(at_, 'yyyy-MM-dd') FROM scores;

INSERT INTO streaks
SELECT player, window_start, COUNT(*), MAX(points)
FROM TABLE(SESSION(TABLE scores PARTITION BY player, DESCRIPTOR(at_), INTERVAL '90' MINUTES))
GROUP BY player, window_start, window_end
HAVING COUNT(*) > 2;

---- duckdb
CREATE VIEW scores AS SELECT * FROM read_json('scores.json', columns = {player: 'VARCHAR', country: 'VARCHAR', game: 'VARCHAR',
  points: 'INT', bonus: 'MAP(VARCHAR, INT)', at_: 'TIMESTAMP'});

---- board.db
SELECT country, player, points, place
FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY country ORDER BY points DESC, player) AS place
      FROM (SELECT country, player, CAST(SUM(points) AS BIGINT) AS points FROM scores WHERE country IS NOT NULL GROUP BY country, player))
WHERE place <= 3

---- active.json
SELECT d + INTERVAL '6 hour' * k AS until_, COUNT(DISTINCT player) AS players, COUNT(DISTINCT game) AS games
FROM (SELECT *, date_trunc('day', at_)::TIMESTAMP AS d FROM scores), range(1, 5) r(k)
WHERE at_ < d + INTERVAL '6 hour' * k GROUP BY d, k

---- lake
SELECT player, points, COALESCE(bonus['speed'], 0) + COALESCE(bonus['combo'], 0) AS total_bonus, at_, game, strftime(at_, '%Y-%m-%d') AS dt
FROM scores

---- bonuses.json
SELECT kind, COUNT(*) AS n, CAST(SUM(amount) AS BIGINT) AS total, MAX(player) AS last_player
FROM (SELECT player, unnest(map_entries(bonus), recursive := true) FROM scores) AS t (player, kind, amount) GROUP BY kind

---- streaks.json
SELECT player, MIN(at_) AS begun, COUNT(*) AS n, MAX(points) AS best
FROM (SELECT *, SUM(begins) OVER (PARTITION BY player ORDER BY at_) AS streak
      FROM (SELECT *, CASE WHEN at_ - LAG(at_) OVER (PARTITION BY player ORDER BY at_) < INTERVAL '90 minute' THEN 0 ELSE 1 END AS begins
            FROM scores))
GROUP BY player, streak HAVING COUNT(*) > 2
